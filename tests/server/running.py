"""A real app under uvicorn, on an engine in a thread at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvicorn

from ranvier.cli.serving.http import BoundedProtocol
from ranvier.link.client import SocketClient
from ranvier.link.message import Ready
from ranvier.link.service import EngineLink, EngineService


class EngineThread:
    """The engine's end, as its process runs it."""

    def __init__(self, engine):
        self.engine = engine
        ours, self.theirs = socket.socketpair()
        self.link = EngineLink(ours, lambda: None)
        self.thread = threading.Thread(target=EngineService(engine, self.link).run, daemon=True)

    async def client(self, stall_s=60.0):
        reader, writer = await asyncio.open_unix_connection(sock=self.theirs)
        client = SocketClient(reader, writer, stall_s=stall_s)
        self.link.send(Ready(self.engine.runner.info))
        await client.start(lambda message: None)
        self.thread.start()
        return client


class Server:
    """uvicorn in a thread, on a free loopback port. `make` gives the app for a client."""

    def __init__(self, engine, make):
        self.ready = threading.Event()
        self.engine = engine
        self.make = make
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    async def main(self):
        self.client = await EngineThread(self.engine).client()
        self.app = self.make(self.client)
        config = uvicorn.Config(
            self.app, http=BoundedProtocol, port=0, log_level="error", lifespan="off"
        )
        self.server = uvicorn.Server(config)
        task = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.005)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.ready.set()
        await task
        await self.client.close()

    def hold(self):
        """Stop a simulated device before its next step until the event is set."""
        event = threading.Event()

        def wait(plan):
            assert event.wait(30)

        self.engine.runner.on_step = wait
        return event

    def is_idle(self):
        """Whether nothing is open and every block is back."""
        pool = self.engine.scheduler.pool
        is_empty = not self.engine.has_work and self.app.state.gate.open_count == 0
        return is_empty and pool.free == pool.total

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
