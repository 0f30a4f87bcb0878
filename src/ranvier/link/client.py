"""EngineClient: the server's view of an engine, and SocketClient: one in a process of its own.

All of it runs on one event loop. Events of a turn arrive in one message and are handed to their
streams as they are: the work a token causes does not grow with streams or with output. A stream
whose reader is too slow is cut off, so that no buffer grows without bound.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ranvier.core.errors import (
    CapacityError,
    ClusterError,
    InternalError,
    RanvierError,
    RequestError,
    TooManyRequests,
)
from ranvier.core.limits import LIMITS
from ranvier.core.request import EngineStats, Event, Request
from ranvier.link.message import (
    HEAD_BYTES,
    AdapterAnswer,
    Admit,
    Alive,
    Cancel,
    Failure,
    FromEngine,
    LoadAdapter,
    Located,
    News,
    Phase,
    ProtocolFault,
    Ready,
    Refused,
    ResetPrefixCache,
    Stop,
    ToEngine,
    UnloadAdapter,
    decode,
    frame,
    frame_size,
)

__all__ = ["EngineClient", "SocketClient", "Stream", "StreamOwner"]

WATCH_S = 0.05
"""At least this long between two looks: what has arrived meanwhile is heard first."""
Receive = Callable[[Located | Phase], None]


class StreamOwner(Protocol):
    """Whom a stream tells of its end."""

    def forget(self, request_id: str) -> None:
        """Cancel a request whose stream is no longer read."""
        ...

    def close_stream(self, request_id: str) -> None:
        """A request has ended; nothing more is expected of it."""
        ...


class EngineClient(Protocol):
    """What the server asks of an engine. `on_stats` is called with numbers as they come."""

    on_stats: Callable[[EngineStats], None] | None

    def submit(self, requests: Sequence[Request]) -> Stream: ...
    def cancel(self, request_id: str, index: int | None = None) -> None: ...
    def trouble(self) -> str | None: ...
    def degraded(self) -> str | None: ...
    def stats(self) -> EngineStats: ...
    def reset_prefix_cache(self) -> None: ...
    async def load_adapter(
        self, name: str, path: str, *, is_inplace: bool = False, is_pinned: bool | None = None
    ) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...


class Stream:
    """Events of some requests, in batches as they come, until each sequence has ended.

    Use it as an async context manager: leaving it early cancels what is open.
    """

    def __init__(self, owner: StreamOwner, requests: Sequence[Request]) -> None:
        self._owner = owner
        self._open = {r.request_id: r.params.sequence_count for r in requests}
        self._events: list[Event] = []
        self._error: RanvierError | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in self._open:
            self._owner.forget(name)
        self._open = {}

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Event]:
        """All events since the last call. Raises the error that ended the stream."""
        if not self._events and self._error is None:
            if not self._open:
                raise StopAsyncIteration
            await self._news.wait()
        if self._error is not None:
            raise self._error
        self._news.clear()
        events, self._events = self._events, []
        for event in events:
            if event.finish_reason is not None:
                self._count_end(event.request_id)
        return events

    def put(self, event: Event) -> None:
        if len(self._events) >= LIMITS.stream_events_max:
            self.fail(CapacityError("The reader of this stream is too slow."))
            return
        self._events.append(event)
        self._news.set()

    def fail(self, error: RanvierError) -> None:
        if self._error is None:
            self._error = error
            self._news.set()

    def _count_end(self, request_id: str) -> None:
        self._open[request_id] -= 1
        if not self._open[request_id]:
            del self._open[request_id]
            self._owner.close_stream(request_id)


class SocketClient:
    """The engine at the other end of a socket.

    `stall_s` without a word from it is trouble, and ends what is open with an error.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stall_s: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._stall_s = stall_s
        self._streams: dict[str, Stream] = {}
        self._tickets = itertools.count(1)
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._stats = EngineStats()
        self._error: RanvierError | None = None
        self._heard_s = time.monotonic()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._tasks: list[asyncio.Task[None]] = []
        self._alive_s: float | None = None
        self.on_stats: Callable[[EngineStats], None] | None = None
        self.lost = asyncio.Event()
        """Set when there is no engine any more."""

    @property
    def error(self) -> RanvierError | None:
        """Why there is no engine any more."""
        return self._error

    async def start(self, receive: Receive) -> Ready:
        """Wait until the engine is ready. Raises what its start raised."""
        try:
            while not isinstance(message := await self._next_alive(), Ready):
                if isinstance(message, Failure):
                    raise message.error()
                if isinstance(message, (Located, Phase)):
                    receive(message)
        except (EOFError, ProtocolFault, OSError) as error:
            raise InternalError("The engine process ended while it started.") from error
        self._heard_s = time.monotonic()
        self._tasks = [asyncio.create_task(work()) for work in (self._listen, self._watch)]
        return message

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Send requests to the engine. Raises InternalError when it is gone.

        Raises RequestError for an id that is in use.
        """
        self.check(requests)
        stream = Stream(self, requests)
        self.attach(stream, requests)
        return stream

    def check(self, requests: Sequence[Request]) -> None:
        """Raise what submit raises."""
        if self._error is not None:
            raise self._error
        for request in requests:
            if request.request_id in self._streams:
                raise RequestError(
                    f"Request id {request.request_id!r} is in use.", param="request_id"
                )

    def attach(self, stream: Stream, requests: Sequence[Request]) -> None:
        """Send checked requests; their events go to a stream that may be of others too.

        Raises RequestError for requests that are too large for a message.
        """
        try:
            self._send(Admit(list(requests)))
        except ProtocolFault:
            raise RequestError(
                "The request's prompts and prepared pictures are together more than "
                f"{LIMITS.request_bytes_max} bytes.",
                hint="Send less at once.",
            ) from None
        for request in requests:
            self._streams[request.request_id] = stream

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request or one of its sequences; its last event is not waited for."""
        self._send(Cancel(request_id, index))

    def forget(self, request_id: str) -> None:
        """Cancel a request whose stream is no longer read."""
        if self._streams.pop(request_id, None) is not None:
            self.cancel(request_id)

    def close_stream(self, request_id: str) -> None:
        """A request has ended; nothing more is expected of it."""
        self._streams.pop(request_id, None)

    def trouble(self) -> str | None:
        """Why the engine cannot serve, or None."""
        if self._error is not None:
            return self._error.message
        silent_s = time.monotonic() - self._heard_s
        if silent_s > self._stall_s:
            return f"The engine has been stuck for {silent_s:.0f} s."
        return None

    def degraded(self) -> str | None:
        """What is lost of an engine that can still serve: nothing, of one."""
        return None

    def stats(self) -> EngineStats:
        """The latest numbers, at most a second old."""
        return self._stats

    def reset_prefix_cache(self) -> None:
        self._send(ResetPrefixCache())

    async def load_adapter(
        self, name: str, path: str, *, is_inplace: bool = False, is_pinned: bool | None = None
    ) -> None:
        """Serve the adapter in a folder under a name. Raises what the engine says of it."""
        if len(self._answers) >= LIMITS.adapter_loads_max:
            raise TooManyRequests(
                f"{len(self._answers)} adapters are being loaded, the limit is "
                f"{LIMITS.adapter_loads_max}.",
                hint="Try again later.",
            )
        await self._ask(LoadAdapter(next(self._tickets), name, path, is_inplace, is_pinned))

    async def unload_adapter(self, name: str) -> None:
        """Serve a name no longer. Raises ModelNotFound."""
        await self._ask(UnloadAdapter(next(self._tickets), name))

    async def _ask(self, message: LoadAdapter | UnloadAdapter) -> None:
        if self._error is not None:
            raise self._error
        answer = self._answers[message.ticket] = asyncio.get_running_loop().create_future()
        try:
            self._send(message)
            await answer
        finally:
            del self._answers[message.ticket]

    async def close(self) -> None:
        """Tell the engine to end; open streams end with an error."""
        self._send(Stop())
        self._end(InternalError("The server is shutting down."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    def _send(self, message: ToEngine) -> None:
        if self._error is None:
            self._writer.write(frame(message))

    async def _next(self) -> FromEngine:
        try:
            size = frame_size(await self._reader.readexactly(HEAD_BYTES))
            return decode(await self._reader.readexactly(size), self._decoder)
        except asyncio.IncompleteReadError:
            raise EOFError from None

    async def _next_alive(self) -> FromEngine:
        """The next message. Raises ClusterError when an engine that beats falls silent."""
        limit_s = None if self._alive_s is None else LIMITS.silence_s
        try:
            message = await asyncio.wait_for(self._next(), limit_s)
        except TimeoutError:
            raise _silent(LIMITS.silence_s) from None
        if isinstance(message, Alive):
            self._alive_s = time.monotonic()
        return message

    async def _listen(self) -> None:
        """Deliver messages until the connection ends."""
        error = InternalError("The engine process has died.", hint="Restart the server.")
        try:
            while True:
                message = await self._next()
                if isinstance(message, Alive):
                    self._alive_s = time.monotonic()
                    continue
                self._heard_s = time.monotonic()
                if isinstance(message, News):
                    self._take(message)
                elif isinstance(message, Refused):
                    self._fail(message.request_id, message.failure.error())
                elif isinstance(message, AdapterAnswer):
                    self._take_answer(message)
                elif isinstance(message, Failure):
                    self._end(message.error())
        except (EOFError, OSError):
            self._end(error)
        except ProtocolFault as fault:
            self._end(InternalError(f"The engine process sent {fault}."))
            self._writer.close()

    async def _watch(self) -> None:
        """End what is open once the engine has been silent for too long."""
        while True:
            left_s = self._heard_s + self._stall_s - time.monotonic()
            await asyncio.sleep(min(max(left_s, WATCH_S), LIMITS.beat_s))
            if self._alive_s is not None and self._error is None:
                silent_s = time.monotonic() - self._alive_s
                if silent_s > LIMITS.silence_s:
                    self._end(_silent(silent_s))
            trouble = self.trouble()
            if trouble is None or self._error is not None:
                continue
            for name in list(self._streams):
                self.cancel(name)
                self._fail(name, InternalError(trouble, hint="The request may be sent again."))

    def _take(self, news: News) -> None:
        streams = self._streams
        for event in news.events:
            stream = streams.get(event.request_id)
            if stream is not None:
                stream.put(event)
        if news.stats is not None:
            self._stats = news.stats
            if self.on_stats is not None:
                self.on_stats(news.stats)

    def _take_answer(self, message: AdapterAnswer) -> None:
        answer = self._answers.get(message.ticket)
        if answer is None or answer.done():
            return  # who asked has gone
        if message.failure is None:
            answer.set_result(None)
        else:
            answer.set_exception(message.failure.error())

    def _fail(self, request_id: str, error: RanvierError) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.fail(error)

    def _end(self, error: RanvierError) -> None:
        """No engine from here on."""
        if self._error is None:
            self._error = error
            self.lost.set()
            for name in list(self._streams):
                self._fail(name, error)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)


def _silent(seconds: float) -> ClusterError:
    return ClusterError(
        f"The cluster stopped: rank 0's engine process has been silent for {seconds:.0f} s.",
        hint="Every rank stops; a supervisor may start them again.",
    )
