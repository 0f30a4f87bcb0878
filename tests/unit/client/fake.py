"""A server of recorded bytes: what it is sent it keeps, what it was told it answers."""

from __future__ import annotations

import asyncio
import threading


class FakeServer:
    """Answers every connection with `pieces`; None in it means: wait for the client to leave."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.requests: list[bytes] = []
        self.left = threading.Event()
        self.waiting = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    async def _main(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
             if line.startswith(b"content-length")), 0,
        )  # fmt: skip
        self.requests.append(head + await reader.readexactly(length))
        for piece in self.pieces:
            if piece is None:
                self.waiting.set()
                await reader.read()
                self.left.set()
                break
            writer.write(piece)
            await writer.drain()
        writer.close()


def plain(body, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*parts):
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        f"{len(part):x};note\r\n".encode() + part + b"\r\n" for part in parts
    )


def events(*values):
    return [f"data: {value}\n\n".encode() for value in values]
