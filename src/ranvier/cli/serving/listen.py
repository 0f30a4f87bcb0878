"""Listener: the HTTP side on a ready engine, from the first request to the end of the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from ranvier.artifact.read import read_manifest
from ranvier.cli.media import open_desk
from ranvier.cli.options.adapters import read_modules
from ranvier.cli.options.front import FrontOptions, server_options
from ranvier.cli.options.settings import Options, say
from ranvier.cli.serving.fleet import Fleet
from ranvier.cli.serving.http import BoundedProtocol
from ranvier.cli.serving.shutdown import Shutdown
from ranvier.cli.wire import open_codec
from ranvier.core.errors import ClusterError
from ranvier.link.message import Ready
from ranvier.server.app import make_app
from ranvier.server.http.log import StatsLine

__all__ = ["Listener"]

CLOSE_S = 2
"""Time for answers to reach their readers once the engine has stopped."""


class Listener:
    """The application of one served model."""

    def __init__(
        self, front: FrontOptions, options: Options, fleet: Fleet, ready: Ready, folder: Path
    ) -> None:
        assert fleet.client is not None
        self._front = front
        self._modules = options.lora_modules
        self._fleet = fleet
        self._client = fleet.client
        size = int(read_manifest(folder).model["vocab_size"])
        codec = open_codec(folder, size, ready.info.model_len_max, options)
        self._codec = codec
        self._server = server_options(front, options.model, ready.cache)
        created = int(time.time())
        self._pictures = open_desk(folder, codec, ready.info.vision, options)
        self._app = make_app(
            self._server, codec, self._client, ready.info, created=created, pictures=self._pictures
        )

    async def run(
        self, listener: socket.socket, shutdown: Shutdown, *, on_ready: Callable[[], None]
    ) -> int:
        """Serve until the first signal, or the loss of a rank, then drain. The exit code."""
        front = self._front
        for module in read_modules(self._modules):
            parent = module.base_model_name
            await self._app.state.adapters.load(
                module.name, module.path, parent=parent, is_pinned=module.pinned
            )
            say(f"adapter {module.name!r}: {module.path}")
        config = uvicorn.Config(
            self._app,
            http=BoundedProtocol,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            root_path=front.root_path,
            timeout_keep_alive=front.timeout_keep_alive,
            timeout_graceful_shutdown=CLOSE_S,
            ssl_keyfile=front.ssl_keyfile,
            ssl_certfile=front.ssl_certfile,
            ssl_ca_certs=front.ssl_ca_certs,
            ssl_cert_reqs=front.ssl_cert_reqs,
            ssl_ciphers=front.ssl_ciphers,
        )
        server = _Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        await asyncio.to_thread(self._codec.templates.start)
        await asyncio.to_thread(self._pictures.start)
        on_ready()
        say(f"ready at {self._where(listener)} (model {self._server.model_name})")
        counting = asyncio.ensure_future(self._count())
        lost = asyncio.ensure_future(self._fleet.lost())
        await asyncio.wait(
            [asyncio.ensure_future(shutdown.asked.wait()), serving, lost],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await self._drain(shutdown)
        counting.cancel()
        error = lost.result() if lost.done() else None
        lost.cancel()
        await self._client.close()
        self._codec.templates.close()
        self._pictures.close()
        server.should_exit = True
        server.force_exit = shutdown.insisted.is_set()
        await serving
        if error is None:
            return 0
        say(f"error: {error}")
        return ClusterError.exit_code

    def _where(self, listener: socket.socket) -> str:
        front = self._front
        if front.uds:
            return front.uds
        host = f"[{front.host}]" if ":" in front.host else front.host
        scheme = "https" if front.ssl_certfile else "http"
        return f"{scheme}://{host}:{listener.getsockname()[1]}"

    async def _count(self) -> None:
        """A line of throughput now and then."""
        every_s = self._front.log_stats_interval
        line = StatsLine(self._client.stats, time.monotonic())
        while every_s > 0:
            await asyncio.sleep(every_s)
            line.log(time.monotonic())

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
