"""EngineHost: starts the engine's process, connects to it, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable

from ranvier.cli.serving.order import EngineOrder
from ranvier.core.errors import InternalError, RanvierError
from ranvier.link.client import SocketClient
from ranvier.link.message import Located, Phase, Ready

__all__ = ["EngineHost"]

END_S = 3.0
"""Time for the engine to end by itself after Stop."""


class EngineHost:
    """One engine process. The socket's folder exists only until the process has connected."""

    def __init__(self, order: EngineOrder) -> None:
        self._folder = tempfile.mkdtemp(prefix="ranvier-")
        path = os.path.join(self._folder, "engine.sock")
        self._listener = _listen(path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ranvier.cli.serving.engine_process", path],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            start_new_session=True,  # a Ctrl-C of the terminal is for the server: it drains
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(order.dump())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; connect() says so
        self.client: SocketClient | None = None

    async def connect(self, receive: Callable[[Located | Phase], None], stall_s: float) -> Ready:
        """Wait until the engine is ready. Raises what made its start fail."""
        try:
            connection = await self._accept()
            limit = asyncio.open_unix_connection(sock=connection)
            reader, writer = await limit
            client = SocketClient(reader, writer, stall_s=stall_s)
            ready = await client.start(receive)
        except InternalError as error:
            raise self._explained(error) from None
        self.client = client
        return ready

    async def close(self, *, is_hurried: bool = False) -> None:
        """End the process: by itself, else by force. Safe to call at any time."""
        self._forget_socket()
        if self.client is not None:
            await self.client.close()
            await asyncio.to_thread(self._wait, 0.0 if is_hurried else END_S)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.process.wait)

    async def _accept(self) -> socket.socket:
        """The process's connection and no one else's."""
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(loop.sock_accept(self._listener))
        try:
            while not accepting.done():
                await asyncio.wait([accepting], timeout=0.1)
                if self.process.poll() is not None and not accepting.done():
                    raise InternalError("The engine process ended before it connected.")
        finally:
            accepting.cancel()
            self._forget_socket()
        connection = accepting.result()[0]
        if _peer_pid(connection) not in (None, self.process.pid):
            connection.close()
            raise InternalError("Another process connected to the engine's socket.")
        return connection

    def _forget_socket(self) -> None:
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)

    def _explained(self, error: InternalError) -> RanvierError:
        """The error, with how the process ended where that says more."""
        self._wait(END_S)
        code = self.process.poll()
        if code is None or code >= 0:
            return error
        name = signal.Signals(-code).name
        hint = "The system may have run out of memory." if -code == signal.SIGKILL else ""
        return InternalError(
            f"The engine process was killed by {name} while it started.", hint=hint
        )


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(1)
    listener.setblocking(False)
    return listener


def _peer_pid(connection: socket.socket) -> int | None:
    """The process at the other end, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    found: int = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )[0]
    return found
