"""Fetcher: what it may open, and that nothing else is opened. Hosts are on loopback."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from contextlib import asynccontextmanager

import pytest

from ranvier.core import limits
from ranvier.core.errors import RequestError
from ranvier.media import fetch as module
from ranvier.media.fetch import Fetcher, is_public

BODY = bytes(range(256)) * 40


def anywhere(address):
    return True


@asynccontextmanager
async def host(answer):
    """A host that sends `answer` to whoever connects; (its port, the heads that it was sent)."""
    heads = []

    async def serve(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def plain(body, head=b""):
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s" % (len(body), head, body)


async def fetched(answer, path="/a.png?q=1"):
    async with host(answer) as (port, heads):
        fetcher = Fetcher((f"localhost:{port}",), accepts=anywhere)
        data = await fetcher.fetch(f"http://localhost:{port}{path}")
    return data, heads[0]


async def refused(url, fetcher=None):
    with pytest.raises(RequestError) as caught:
        await (fetcher or Fetcher()).fetch(url)
    return caught.value.message


async def test_a_listed_host_is_asked_once():
    data, head = await fetched(plain(BODY))
    assert data == BODY
    assert head.startswith(b"GET /a.png?q=1 HTTP/1.1\r\nHost: localhost:")


async def test_a_chunked_answer_and_one_that_ends_with_its_connection_are_read():
    chunked = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert (await fetched(chunked))[0] == b"abcde"
    assert (await fetched(b"HTTP/1.0 200 OK\r\n\r\nabc"))[0] == b"abc"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n\r\n", "redirects"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "answered 404"),
        (plain(b"x", b"content-encoding: gzip\r\n"), "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "larger than"),
        (b"no http at all\r\n\r\n", "could not be fetched"),
        (b"", "no answer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, "could not be fetched"),
    ],
)
async def test_bad_answers_are_refused_in_our_words(answer, told):
    with pytest.raises(RequestError, match=told):
        await fetched(answer)


async def test_a_body_without_a_length_is_cut_off_at_the_limit():
    body = bytes(limits.LIMITS.image_bytes_max + 1)
    with pytest.raises(RequestError, match="larger than"):
        await fetched(b"HTTP/1.1 200 OK\r\n\r\n" + body)


async def test_a_host_that_drips_is_left(monkeypatch):
    monkeypatch.setattr(module, "LIMITS", limits.Limits(image_fetch_s=0.05))

    async def silent(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        fetcher = Fetcher((f"127.0.0.1:{port}",), accepts=anywhere)
        assert "within 0.05 s" in await refused(f"http://127.0.0.1:{port}/", fetcher)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png", "https://169.254.169.254/latest", "http://localhost/",
        "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://good.example.evil.net/", "http://good.example:22/",
    ],
)  # fmt: skip
async def test_hosts_that_are_not_listed_are_never_resolved(url, monkeypatch):
    def resolve(*_):
        raise AssertionError("resolved")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert "not fetched from this host" in await refused(url, Fetcher(("good.example",)))


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example\\@127.0.0.1/", "http://user@good.example/", "http://good。example/",
        "http://good.example/a b", "http://good.example/\r\nX: 1", "ftp://good.example/",
        "gopher://good.example/", "http:///etc/passwd", "good.example/a.png", "", "http://[::1/",
        "javascript:alert(1)",
    ],
)  # fmt: skip
async def test_urls_that_parsers_disagree_about_are_refused(url):
    await refused(url, Fetcher(("good.example",)))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:4136:e378::1", "ff02::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address):
    assert is_public(address)


async def test_a_listed_name_that_leads_inside_is_not_connected_to():
    async with host(plain(BODY)) as (port, heads):
        told = await refused(f"http://localhost:{port}/", Fetcher((f"localhost:{port}",)))
    assert "not public" in told
    assert not heads


async def test_a_name_is_resolved_once_and_its_address_used(monkeypatch):
    """A second lookup would lead elsewhere (DNS rebinding)."""
    async with host(plain(BODY)) as (port, _):
        answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]]
        loop = asyncio.get_running_loop()

        async def resolve(name, *_, **__):
            if name == "rebind.example":
                return answers.pop()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        fetcher = Fetcher((f"rebind.example:{port}",), accepts=anywhere)
        assert await fetcher.fetch(f"http://rebind.example:{port}/") == BODY
    assert not answers


async def test_data_urls_are_read():
    text = base64.b64encode(BODY).decode()
    assert await Fetcher().fetch(f"data:image/png;base64,{text}") == BODY
    for url in ("data:,x", "data:image/png,abc", "data:image/png;base64,a-_b", "data:x;base64,a"):
        assert "data: URL" in await refused(url)
    long = "A" * (limits.LIMITS.image_bytes_max // 3 * 4 + 8)
    assert "larger than" in await refused(f"data:image/png;base64,{long}")


async def test_files_are_read_below_the_folder_alone(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    (folder / "a b.png").write_bytes(BODY)
    (outside / "s.png").write_bytes(BODY)
    (folder / "link.png").symlink_to(outside / "s.png")
    (folder / "up").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    fetcher = Fetcher(folder=folder)
    assert await fetcher.fetch(f"file://{folder}/a%20b.png") == BODY
    assert await fetcher.fetch(f"file://localhost{folder}/a b.png") == BODY
    paths = (
        f"{outside}/s.png", f"{folder}/link.png", f"{folder}/up/s.png", f"{folder}/../out/s.png",
        f"{folder}/pipe", f"{folder}", f"{folder}/none.png", "/etc/passwd", f"{folder}-x/a",
        f"{folder}/a%00.png", f"{folder}/{'x' * 5000}",
    )  # fmt: skip
    for path in paths:
        assert "not below the allowed folder" in await refused(f"file://{path}", fetcher)
    assert "not below" in await refused("file://host/etc/passwd", fetcher)
    assert "not allowed" in await refused(f"file://{folder}/a%20b.png")
