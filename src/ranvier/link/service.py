"""EngineService: one engine at the engine's end of the socket, until the front goes away.

The loop's thread owns the engine and is the only writer; a second thread reads. Whatever ends the
connection (the front's death, a malformed message) ends every open request: all blocks return.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from ranvier.core.errors import ClusterError, InternalError, RanvierError, RequestError
from ranvier.core.request import Event
from ranvier.engine.loop import Engine
from ranvier.link.message import (
    HEAD_BYTES,
    AdapterAnswer,
    Admit,
    Cancel,
    Failure,
    FromEngine,
    LoadAdapter,
    News,
    ProtocolFault,
    Refused,
    ResetPrefixCache,
    Stop,
    ToEngine,
    UnloadAdapter,
    decode,
    frame,
    frame_size,
)

__all__ = ["EngineLink", "EngineService"]

BEAT_S = 0.25
"""At most this long without a word to the front while the loop turns."""
STATS_S = 0.5
LOG = logging.getLogger("ranvier.engine")


class Wake:
    """A command that only ends a wait: an adapter has been read."""


class EngineLink:
    """The engine's end of the connection. `on_closed` is called once, from the reading thread."""

    def __init__(self, connection: socket.socket, on_closed: Callable[[], None]) -> None:
        self.commands: queue.SimpleQueue[ToEngine | Wake | None] = queue.SimpleQueue()
        self._connection = connection
        self._on_closed = on_closed
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="engine reader", daemon=True).start()

    def send(self, message: FromEngine) -> None:
        """Blocks while the front does not read. A front that is gone is found by the reader."""
        data = frame(message)
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:
            self.commands.put(None)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(ToEngine)
        try:
            while head := self._exactly(HEAD_BYTES):
                self.commands.put(decode(self._exactly(frame_size(head)), decoder))
        except ProtocolFault as fault:
            LOG.error("the front sent %s: the connection is closed", fault)
        except OSError:
            pass
        self.commands.put(None)
        self._on_closed()

    def _exactly(self, size: int) -> bytes:
        """So many bytes, or nothing at the end of the connection."""
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(min(size - len(data), 2**20))
            if not part:
                return b""
            data += part
        return bytes(data)


class EngineService:
    """Turns the loop of one engine for one link."""

    def __init__(self, engine: Engine, link: EngineLink) -> None:
        self._engine = engine
        self._link = link
        self._open: set[str] = set()
        self._spoke_s = 0.0
        self._counted_s = 0.0
        if engine.adapters is not None:
            engine.adapters.wake(lambda: link.commands.put(Wake()))

    def run(self) -> None:
        """Serve until Stop or the end of the connection.

        Raises InternalError and ClusterError, after telling them.
        """
        try:
            while self._obey(is_idle=self._engine.can_sleep):
                self._tell(self._engine.turn())
        except ClusterError as error:
            self._link.send(Failure.of(error))
            raise
        except Exception as error:
            LOG.exception("the engine loop failed")
            kind = type(error).__name__
            failure = InternalError(f"The engine failed: {kind}.", hint="See the server's log.")
            self._link.send(Failure.of(failure))
            raise failure from error
        finally:
            for name in self._open:
                self._engine.cancel(name)
            self._link.close()

    def _obey(self, *, is_idle: bool) -> bool:
        """Follow the pending commands, waiting up to BEAT_S for one when idle; False to stop."""
        commands = self._link.commands
        try:
            command = commands.get(timeout=BEAT_S) if is_idle else commands.get_nowait()
            while command is not None and not isinstance(command, Stop):
                self._follow(command)
                command = commands.get_nowait()
            return False
        except queue.Empty:
            return True

    def _follow(self, command: ToEngine | Wake) -> None:
        if isinstance(command, Admit):
            for request in command.requests:
                try:
                    self._engine.admit(request)
                    self._open.add(request.request_id)
                except RanvierError as error:
                    self._link.send(Refused(request.request_id, Failure.of(error)))
        elif isinstance(command, Cancel):
            self._engine.cancel(command.request_id, command.index)
        elif isinstance(command, ResetPrefixCache):
            self._engine.reset_prefix_cache()
        elif isinstance(command, (LoadAdapter, UnloadAdapter)):
            self._follow_adapter(command)

    def _follow_adapter(self, command: LoadAdapter | UnloadAdapter) -> None:
        """A load is answered when it has ended, everything else at once."""
        adapters, ticket = self._engine.adapters, command.ticket
        try:
            if adapters is None:
                raise RequestError("No adapters are served.", hint="Start with --enable-lora.")
            if isinstance(command, LoadAdapter):
                adapters.load(
                    ticket,
                    command.name,
                    command.path,
                    is_inplace=command.is_inplace,
                    is_pinned=command.is_pinned,
                )
                return
            adapters.unload(command.name)
            self._link.send(AdapterAnswer(ticket))
        except RanvierError as error:
            self._link.send(AdapterAnswer(ticket, Failure.of(error)))

    def _tell(self, news: list[Event]) -> None:
        """Events of a turn in one message; a heartbeat when there was nothing to say."""
        answers, self._engine.adapter_answers = self._engine.adapter_answers, []
        for answer in answers:
            failure = None if answer.error is None else Failure.of(answer.error)
            self._link.send(AdapterAnswer(answer.ticket, failure))
        now_s = time.perf_counter()
        is_counting = now_s - self._counted_s >= STATS_S
        if not news and not is_counting and now_s - self._spoke_s < BEAT_S:
            return
        self._spoke_s = now_s
        stats = None
        if is_counting:
            self._counted_s, stats = now_s, self._engine.take_stats()
        for event in news:
            if event.finish_reason is not None and not self._engine.has_request(event.request_id):
                self._open.discard(event.request_id)
        self._link.send(News(news, stats))
