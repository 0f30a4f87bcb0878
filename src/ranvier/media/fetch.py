"""Fetcher: the bytes of a picture that a URL names, within what the operator allowed.

data: URLs always; http and https for listed domains alone; file: below one folder alone. A host is
resolved once, every address that it has must be public, and the connection goes to one of those: no
second lookup can lead elsewhere. Redirects are refused. Knows nothing of picture formats.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import os
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS

__all__ = ["Fetcher", "is_public"]

PARAM = "messages"
PORTS = {"http": 80, "https": 443}
PART_BYTES = 64 * 2**10
HEAD_BYTES_MAX = 32 * 2**10
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also where it wraps an IPv4 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast


class Fetcher:
    """`domains` are host names, or host:port for other ports than 80 and 443.

    `accepts` decides over each address that a host resolves to; only tests replace it.
    """

    def __init__(
        self,
        domains: tuple[str, ...] = (),
        folder: Path | None = None,
        *,
        accepts: Callable[[str], bool] = is_public,
    ) -> None:
        self._domains = frozenset(domain.lower().rstrip(".") for domain in domains)
        self.folder = None if folder is None else folder.resolve()
        self._accepts = accepts

    async def fetch(self, url: str) -> bytes:
        """The bytes that a URL names. Raises RequestError."""
        scheme = url[:5].lower()
        if scheme == "data:":
            return await asyncio.to_thread(_inline, url)
        if scheme == "file:":
            return await asyncio.to_thread(self.read_file, url)
        parts = _split(url)
        host, port = self._allowed(parts)
        try:
            async with asyncio.timeout(LIMITS.image_fetch_s):
                return await self._download(parts, host, port)
        except TimeoutError:
            told = f"The picture's host did not deliver it within {LIMITS.image_fetch_s:g} s."
            raise _refused(told) from None
        except (OSError, httptools.HttpParserError, asyncio.IncompleteReadError):
            raise _refused("The picture could not be fetched from its host.") from None

    def read_file(self, url: str) -> bytes:
        """The file of a file: URL. Raises RequestError."""
        rest = url[5:]
        return self.read_path(
            unquote(rest[2:].removeprefix("localhost") if rest.startswith("//") else rest)
        )

    def read_path(self, path: str) -> bytes:
        """A file below the allowed folder, links resolved. Raises RequestError."""
        if self.folder is None:
            raise _refused(
                "file: URLs are not allowed.", "Start with --allowed-local-media-path FOLDER."
            )
        denied = _refused("The file is not there, or not below the allowed folder.")
        if not path.startswith("/") or "\x00" in path:
            raise denied
        real = os.path.realpath(path)
        if not Path(real).is_relative_to(self.folder):
            raise denied
        try:
            # The last part cannot turn into a link, nor the file into a pipe that never ends.
            opened = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(opened, "rb") as file:
                if os.path.realpath(path) != real or not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise denied
                data = file.read(LIMITS.image_bytes_max + 1)
        except OSError:
            raise denied from None
        _check_size(len(data))
        return data

    def _allowed(self, parts: SplitResult) -> tuple[str, int]:
        """Host and port, both listed. Raises RequestError."""
        host = (parts.hostname or "").rstrip(".")
        try:
            port = parts.port or PORTS[parts.scheme]
        except ValueError:
            raise _refused("The picture's URL has no valid port.") from None
        is_listed = host in self._domains and port in PORTS.values()
        if not host or not (is_listed or f"{host}:{port}" in self._domains):
            hint = "The operator lists hosts with --allowed-media-domains; data: URLs always work."
            raise _refused("Pictures are not fetched from this host.", hint)
        return host, port

    async def _download(self, parts: SplitResult, host: str, port: int) -> bytes:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=1)  # SOCK_STREAM
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self._accepts(address) for address in addresses):
            raise _refused("The picture's host has an address that is not public.")
        is_secure = parts.scheme == "https"
        reader, writer = await asyncio.open_connection(
            addresses[0],
            port,
            ssl=ssl.create_default_context() if is_secure else None,
            server_hostname=host if is_secure else None,
        )
        try:
            writer.write(_head(parts))
            return await _Answer().read(reader)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class _Answer:
    """The parser's callbacks: one answer, its status, and its body within bounds."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._data = bytearray()
        self._head_bytes = self._told_bytes = 0
        self._is_in_body = self._is_done = False

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        """The body of a 200. Raises RequestError."""
        while not self._is_done and (part := await reader.read(PART_BYTES)):
            if not self._is_in_body:
                self._head_bytes += len(part)
            self._parser.feed_data(part)
            self._check()
        if not self._is_in_body:
            raise _refused("The picture's host sent no answer.")
        return bytes(self._data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length" and value.isdigit():
            self._told_bytes = int(value)
        elif name.lower() == b"content-encoding" and value.lower() != b"identity":
            raise OSError("an encoding that was not asked for")

    def on_headers_complete(self) -> None:
        self._is_in_body = True

    def on_body(self, part: bytes) -> None:
        self._data += part

    def on_message_complete(self) -> None:
        self._is_done = True

    def _check(self) -> None:
        if self._is_in_body:
            status = self._parser.get_status_code()
            if 300 <= status < 400:
                raise _refused("The picture's host redirects; redirects are not followed.")
            if status != 200:
                raise _refused(f"The picture's host answered {status}.")
            _check_size(max(len(self._data), self._told_bytes))
        elif self._head_bytes > HEAD_BYTES_MAX:
            raise OSError("a head without end")


def _split(url: str) -> SplitResult:
    """The URL by the one parser; what parsers disagree about is refused. Raises RequestError."""
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(' \\"<>^`{|}')
    try:
        parts = urlsplit(url)
        is_good = is_plain and parts.scheme in PORTS and "@" not in parts.netloc
    except ValueError:
        is_good = False
    if not is_good:
        raise _refused("A picture's URL is a data:, http:, https: or file: URL in plain form.")
    return parts


def _head(parts: SplitResult) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = (
        f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", "Accept: image/*",
        "Accept-Encoding: identity", "User-Agent: ranvier", "Connection: close", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode("ascii")


def _inline(url: str) -> bytes:
    """The bytes of a base64 data: URL. Raises RequestError."""
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _refused("A data: URL of a picture has the form data:image/png;base64,....")
    _check_size(len(text) // 4 * 3 - 2)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _refused("The data: URL of a picture is not valid base64.") from None


def _check_size(size: int) -> None:
    if size > LIMITS.image_bytes_max:
        raise _refused(f"The picture is larger than {LIMITS.image_bytes_max} bytes.")


def _refused(message: str, hint: str = "") -> RequestError:
    return RequestError(message, param=PARAM, hint=hint)
