"""EventStream: server-sent events with keep-alives, an end for slow readers, and cancellation.

Whatever ends it (the last line, the client, an error) leaves the generator of lines, which cancels
what is still running, and gives the place at the gate back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing
from typing import cast

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ranvier.core.errors import RanvierError
from ranvier.core.limits import LIMITS
from ranvier.server.http.errors import envelope

__all__ = ["EventStream", "until_gone"]

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """The answer to a streaming request. `held` is left when it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        lines: AsyncIterator[bytes],
        held: AbstractContextManager[object],
        headers: dict[str, str],
        *,
        keep_alive_s: float,
    ) -> None:
        self._lines = cast("AsyncGenerator[bytes]", lines)
        self._held = held
        self._keep_alive_s = keep_alive_s
        self._sent_s = 0.0
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, the client's leaving, or a reader that does not read."""
        tasks = [
            asyncio.ensure_future(self._pump(send)),
            asyncio.ensure_future(until_gone(receive)),
        ]
        if self._keep_alive_s > 0:
            tasks.append(asyncio.ensure_future(self._keep_alive(send)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        error = ends[0]
        if isinstance(error, Exception) and not isinstance(error, (TimeoutError, OSError)):
            raise error

    async def _pump(self, send: Send) -> None:
        with self._held:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            try:
                async with aclosing(self._lines) as lines:
                    async for data in lines:
                        await self._send(send, data)
            except RanvierError as error:
                await self._send(send, b"data: " + msgspec.json.encode(envelope(error)) + b"\n\n")
            await self._send(send, DONE, is_last=True)

    async def _send(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        """Raises TimeoutError when the client does not take it in time."""
        async with asyncio.timeout(LIMITS.stream_write_s):
            await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._sent_s = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        """A comment whenever nothing was sent for a while: proxies cut idle streams."""
        self._sent_s = time.monotonic()
        while True:
            idle_s = time.monotonic() - self._sent_s
            if idle_s >= self._keep_alive_s:
                await self._send(send, KEEP_ALIVE)
                idle_s = 0.0
            await asyncio.sleep(self._keep_alive_s - idle_s)


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
