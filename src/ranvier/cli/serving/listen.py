"""Listener: the HTTP side on a ready engine, from the first request to the end of the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from ranvier.artifact.read import read_manifest
from ranvier.cli.front import FrontOptions
from ranvier.cli.serving.host import EngineHost
from ranvier.cli.serving.shutdown import Shutdown
from ranvier.cli.settings import Options
from ranvier.cli.wire import open_codec
from ranvier.core.limits import LIMITS
from ranvier.engine.message import Ready
from ranvier.server.app import ServerOptions, make_app

__all__ = ["Listener"]

CLOSE_S = 2
"""Time for answers to reach their readers once the engine has stopped."""


class Listener:
    """The application of one served model."""

    def __init__(
        self, front: FrontOptions, options: Options, host: EngineHost, ready: Ready, folder: Path
    ) -> None:
        assert host.client is not None
        self._front = front
        self._client = host.client
        name = front.served_model_name[0] if front.served_model_name else options.model
        server = ServerOptions(
            model_name=name, api_keys=front.api_key, is_strict=front.strict_params
        )
        size = int(read_manifest(folder).model["vocab_size"])
        codec = open_codec(folder, size, ready.info.model_len_max, options)
        self._name = name
        self._app = make_app(server, codec, self._client, created=int(time.time()))

    async def run(
        self, listener: socket.socket, shutdown: Shutdown, *, on_ready: Callable[[], None]
    ) -> int:
        """Serve until the first signal, then drain. The exit code."""
        front = self._front
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            root_path=front.root_path,
            h11_max_incomplete_event_size=LIMITS.header_bytes_max,
            timeout_graceful_shutdown=CLOSE_S,
        )
        server = _Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        on_ready()
        where = front.uds or f"http://{front.host}:{listener.getsockname()[1]}"
        print(f"ranvier: ready at {where} (model {self._name})", file=sys.stderr, flush=True)
        await shutdown.asked.wait()
        await self._drain(shutdown)
        await self._client.close()
        server.should_exit = True
        server.force_exit = shutdown.insisted.is_set()
        await serving
        return 0

    async def _drain(self, shutdown: Shutdown) -> None:
        """Let open requests finish; refuse new ones. A second signal ends it."""
        gate = self._app.state.gate
        gate.is_draining = True
        deadline_s = time.monotonic() + self._front.shutdown_timeout
        while gate.open_count and time.monotonic() < deadline_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shutdown.insisted.wait(), 0.05)
                return


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the drain is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
