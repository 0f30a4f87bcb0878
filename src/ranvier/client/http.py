"""A small HTTP/1.1 client on asyncio streams: one request a connection, bodies as they come.

Knows nothing of OpenAI's routes. Speaks what model servers speak: Content-Length, chunked bodies,
TLS; no redirects, no compression, no proxies. Every size and every wait has a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ranvier.core.errors import ConfigError, ServerError
from ranvier.core.limits import LIMITS

__all__ = ["Address", "Answer", "parse_url", "send"]

CONNECT_S = 10.0
HEADER_LINES_MAX = 256
READ_BYTES = 2**16


@dataclass(frozen=True)
class Address:
    """Where a server listens. `path` goes before every route; no slash at its end."""

    host: str
    port: int
    path: str = ""
    is_tls: bool = False
    is_verified: bool = True

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.path}"


def parse_url(text: str, *, is_verified: bool = True) -> Address:
    """An address from http(s)://host[:port][/path]. Raises ConfigError."""
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    is_plain = not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or not is_plain:
        raise ConfigError(
            f"{text!r} is no address of a server.", hint="Such as http://127.0.0.1:8000/v1."
        )
    is_tls = parts.scheme == "https"
    port = port or (443 if is_tls else 80)
    return Address(parts.hostname, port, parts.path.rstrip("/"), is_tls, is_verified)


@dataclass
class Answer:
    """A response whose body is still on its way. Header names are lower case."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader = field(repr=False)

    async def body(self) -> bytes:
        """The rest of the body. Raises ServerError beyond the limit."""
        parts, size = [], 0
        async for part in self.parts():
            size += len(part)
            if size > LIMITS.request_bytes_max:
                raise ServerError(f"The answer is larger than {LIMITS.request_bytes_max} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines of the body as they come, without their ends."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
            if len(rest) > LIMITS.request_bytes_max:
                raise ServerError(f"A line is longer than {LIMITS.request_bytes_max} bytes.")
        if rest:
            yield rest

    async def parts(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive. Raises ServerError when the connection breaks."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            source = _chunked(self._reader)
        else:
            length = self.headers.get("content-length")
            source = _plain(self._reader, None if length is None else _number(length, 10))
        async for part in source:
            yield part


@contextlib.asynccontextmanager
async def send(
    address: Address,
    method: str,
    route: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Answer]:
    """Send a request and read the head of its answer; leaving closes the connection.

    Raises ServerError when there is no server, or it does not speak HTTP.
    """
    reader, writer = await _connect(address)
    try:
        writer.write(_head(address, method, route, body, headers or {}) + (body or b""))
        with _broken(address):
            await writer.drain()
            answer = await _answer(reader)
        yield answer
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = None
    if address.is_tls:
        context = ssl.create_default_context()
        if not address.is_verified:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opening = asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        return await asyncio.wait_for(opening, CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise ServerError(
            f"No server answers at {address.url}: {error or 'timed out'}.",
            hint="Start one with `ranvier serve MODEL`, or name another with --url or --base-url.",
        ) from None


def _head(
    address: Address, method: str, route: str, body: bytes | None, headers: Mapping[str, str]
) -> bytes:
    host = address.url.split("//")[1].split("/")[0]
    fields = {"Host": host, "Accept": "*/*", "Connection": "close"}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {address.path}{route} HTTP/1.1"]
    for name, value in {**fields, **headers}.items():
        if any(mark in name + value for mark in "\r\n"):
            raise ConfigError(f"The header {name!r} has a line break in it.")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


async def _answer(reader: asyncio.StreamReader) -> Answer:
    words = (await _line(reader)).split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ServerError("What listens there does not speak HTTP/1.1.")
    headers: dict[str, str] = {}
    for _ in range(HEADER_LINES_MAX):
        line = await _line(reader)
        if not line:
            return Answer(int(words[1]), headers, reader)
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    raise ServerError(f"The answer has more than {HEADER_LINES_MAX} header lines.")


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    with _broken():
        while left := _number((await _line(reader)).partition(";")[0].strip(), 16):
            while left:
                part = await reader.read(min(left, READ_BYTES))
                if not part:
                    raise ServerError("The server closed the connection inside an answer.")
                left -= len(part)
                yield part
            await _line(reader)


async def _plain(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """`length` bytes; without a length, up to the end of the connection."""
    with _broken():
        while length is None or length > 0:
            part = await reader.read(READ_BYTES if length is None else min(length, READ_BYTES))
            if not part and length:
                raise ServerError("The server closed the connection inside an answer.")
            if not part:
                return
            length = None if length is None else length - len(part)
            yield part


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ServerError("The server closed the connection inside an answer.")
    return line.decode("latin-1").rstrip("\r\n")


def _number(text: str, radix: int) -> int:
    try:
        value = int(text, radix)
    except ValueError:
        value = -1
    if value < 0:
        raise ServerError(f"The server sent {text[:40]!r} for a length.")
    return value


@contextlib.contextmanager
def _broken(address: Address | None = None):  # type: ignore[no-untyped-def]
    """Turn what a broken connection raises into ServerError."""
    where = f" at {address.url}" if address else ""
    try:
        yield
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise ServerError(f"The connection to the server{where} broke: {error}.") from None
