"""Memory of processes and of all that they started, as the kernel shares it out (PSS).

Pages that several processes map are counted once; anonymous ones and those of mapped files alike.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

EVERY_S = 0.02


class Watch:
    """The largest sum of PSS of some processes' trees while the block runs, in bytes."""

    def __init__(self, *pids):
        self._pids, self.peak_bytes, self._is_over = pids, 0, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()

    def _run(self):
        while not self._is_over.wait(EVERY_S):
            found = sum(_pss_bytes(pid) for root in self._pids for pid in _tree(root))
            self.peak_bytes = max(self.peak_bytes, found)


def _tree(pid):
    yield pid
    for tasks in _lines(f"/proc/{pid}/task/{pid}/children"):
        for child in tasks.split():
            yield from _tree(int(child))


def _pss_bytes(pid):
    lines = _lines(f"/proc/{pid}/smaps_rollup")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _lines(path):
    with contextlib.suppress(OSError):  # it has ended
        return Path(path).read_text().splitlines()
    return []
