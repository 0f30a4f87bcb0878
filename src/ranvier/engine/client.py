"""EngineClient: the server's view of an engine, asyncio on one side, turns on the other.

The engine runs in a thread of its own here. Events of a turn reach the loop in one call; a stream
whose reader is too slow is cut off, so that no buffer grows without bound.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ranvier.core.errors import CapacityError, InternalError, RanvierError
from ranvier.core.limits import LIMITS
from ranvier.core.request import EngineStats, Event, Request
from ranvier.engine.loop import Engine

__all__ = ["EngineClient", "ThreadClient"]

IDLE_S = 0.05


class EngineClient(Protocol):
    """What the server asks of an engine."""

    @property
    def is_alive(self) -> bool: ...
    def generate(self, request: Request) -> AsyncIterator[Event]: ...
    def cancel(self, request_id: str, index: int | None = None) -> None: ...
    def stats(self) -> EngineStats: ...
    async def close(self) -> None: ...


class _Stream:
    def __init__(self, count: int) -> None:
        self.events: asyncio.Queue[Event | RanvierError] = asyncio.Queue()
        self.open = count


class ThreadClient:
    """An engine in a thread of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, _Stream] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: RanvierError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._error is None and self._thread.is_alive()

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Events of a request until each of its sequences has ended. Raises what admit raises.

        Leaving the iterator early cancels the request.
        """
        if not self.is_alive:
            raise self._error or InternalError("The engine is not running.")
        stream = _Stream(request.params.sequence_count)
        self._streams[request.request_id] = stream
        self._commands.put(lambda: self._admit(request))
        try:
            while stream.open:
                item = await stream.events.get()
                if isinstance(item, RanvierError):
                    raise item
                stream.open -= item.finish_reason is not None
                yield item
        finally:
            self._streams.pop(request.request_id, None)
            if stream.open:
                self.cancel(request.request_id)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._commands.put(lambda: self._engine.cancel(request_id, index))

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def close(self) -> None:
        """Stop the thread; open requests end with an error."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def _admit(self, request: Request) -> None:
        try:
            self._engine.admit(request)
        except RanvierError as error:
            self._call(self._fail, request.request_id, error)

    def _run(self) -> None:
        try:
            while self._drain(is_idle=not self._engine.has_work):
                events = self._engine.turn()
                if events:
                    self._call(self._deliver, events)
            self._stop(InternalError("The engine was stopped."))
        except Exception as error:
            self._stop(InternalError(f"The engine failed: {type(error).__name__}: {error}"))
            raise

    def _drain(self, *, is_idle: bool) -> bool:
        """Run pending commands, waiting a little for one when idle; False to stop."""
        try:
            command = self._commands.get(timeout=IDLE_S) if is_idle else self._commands.get_nowait()
            while command is not None:
                command()
                command = self._commands.get_nowait()
            return False
        except queue.Empty:
            return True

    def _stop(self, error: RanvierError) -> None:
        self._error = error
        for name in list(self._streams):
            self._call(self._fail, name, error)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if stream.events.qsize() >= LIMITS.stream_events_max:
                self._fail(
                    event.request_id, CapacityError("The reader of this stream is too slow.")
                )
                self.cancel(event.request_id)
                continue
            stream.events.put_nowait(event)

    def _fail(self, request_id: str, error: RanvierError) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.events.put_nowait(error)
