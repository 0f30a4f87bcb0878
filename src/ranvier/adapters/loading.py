"""ThreadLoader: reads adapters' files in threads of its own, so that no step waits for a disk.

What is asked for waits in a queue that its user bounds; what is read waits for its user, two at a
time, so that memory is bounded whoever is slow. What comes over a network has a thread of its own:
a slow host holds up nothing that lies on a disk. The threads yield to the engine's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import InternalError, RanvierError

__all__ = ["Loaded", "Loader", "ThreadLoader"]

_Asked = queue.PriorityQueue[tuple[int, int, float, Any, str]]
UNTAKEN_MAX = 2
NICE = 10
"""Steps below the priority of the engine's thread."""


class Loaded(NamedTuple):
    """The end of a load: the weights, or why there are none; seconds since it was asked for."""

    key: Any
    found: AdapterWeights | RanvierError
    seconds: float


class Loader(Protocol):
    """Reads adapters while the engine turns. `on_done` is called when there is something to take,
    maybe from another thread."""

    on_done: Callable[[], None] | None

    def ask(self, key: Any, path: str, *, is_urgent: bool) -> None: ...
    def take(self) -> list[Loaded]: ...
    def close(self) -> None: ...


class ThreadLoader:
    """A Loader with a thread for what is near and one for what is remote; each starts at its first
    load. `read` raises RanvierError."""

    def __init__(
        self,
        read: Callable[[str], AdapterWeights],
        is_remote: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self.on_done: Callable[[], None] | None = None
        self._read = read
        self._is_remote = is_remote
        self._order = itertools.count()
        self._asked: dict[bool, _Asked] = {}
        self._done: queue.Queue[Loaded] = queue.Queue(UNTAKEN_MAX)
        self._is_closed = False

    def ask(self, key: Any, path: str, *, is_urgent: bool) -> None:
        """Read `path`; urgent ones, which a request waits for, before others."""
        is_remote = self._is_remote(path)
        asked = self._asked.get(is_remote)
        if asked is None:
            asked = self._asked[is_remote] = queue.PriorityQueue()
            threading.Thread(
                target=self._work, args=(asked,), name="adapter loader", daemon=True
            ).start()
        asked.put((not is_urgent, next(self._order), time.perf_counter(), key, path))

    def take(self) -> list[Loaded]:
        """What has been read since the last call."""
        found: list[Loaded] = []
        with contextlib.suppress(queue.Empty):
            while len(found) < UNTAKEN_MAX:
                found.append(self._done.get_nowait())
        return found

    def close(self) -> None:
        """End each thread once it has read what it is at."""
        self._is_closed = True
        for asked in self._asked.values():
            asked.put((-1, next(self._order), 0.0, None, ""))

    def _work(self, asked: _Asked) -> None:
        with contextlib.suppress(OSError, AttributeError):
            thread = threading.get_native_id()
            nice = os.getpriority(os.PRIO_PROCESS, thread) + NICE
            os.setpriority(os.PRIO_PROCESS, thread, nice)
        while True:
            _, _, asked_s, key, path = asked.get()
            if self._is_closed:
                return
            found = _outcome(self._read, path)
            self._done.put(Loaded(key, found, time.perf_counter() - asked_s))
            if self.on_done is not None:
                self.on_done()


def _outcome(read: Callable[[str], AdapterWeights], path: str) -> AdapterWeights | RanvierError:
    """The weights or the error. Whatever the reader raises must not end the thread."""
    try:
        return read(path)
    except RanvierError as error:
        return error
    except Exception as error:
        return InternalError(
            f"{path}: the adapter's reader failed: {type(error).__name__}: {error}"
        )
