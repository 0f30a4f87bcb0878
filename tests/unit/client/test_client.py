"""The HTTP client and OpenAI's routes against recorded bytes, whole and broken."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.unit.client.fake import FakeServer, chunked, events, plain

from ranvier.client.http import parse_url, send
from ranvier.client.openai import Server, chunk_text
from ranvier.core.errors import ConfigError, ServerError
from ranvier.core.limits import LIMITS

END = b"0\r\n\r\n"


def fetch(url, body=None, headers=None):
    async def main():
        method = "GET" if body is None else "POST"
        async with send(parse_url(url), method, "/x", body=body, headers=headers) as answer:
            return answer.status, await answer.body()

    return asyncio.run(main())


def stream(url, key=None):
    async def main():
        server = Server(parse_url(url + "/v1"), key)
        return [chunk async for chunk in server.stream("/completions", {"stream": True})]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("http://h", ("h", 80, "", False)),
        ("http://h:8000/v1/", ("h", 8000, "/v1", False)),
        ("https://h/a/b", ("h", 443, "/a/b", True)),
        ("http://[::1]:9", ("::1", 9, "", False)),
    ],
)
def test_urls(text, want):
    address = parse_url(text)
    assert (address.host, address.port, address.path, address.is_tls) == want
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "text", ["", "h:80", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://u@h",
             "http://h/?q=1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="no address"):
        parse_url(text)


@pytest.mark.parametrize(
    "pieces",
    [
        (plain(b"hello world"),),
        (plain(b"hello world")[:40], plain(b"hello world")[40:]),
        (chunked(b"hello", b" ", b"world"), END),
        (chunked(b"hello world")[:-3], chunked(b"hello world")[-3:], END),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b" world"),
    ],
)
def test_bodies_of_every_framing(pieces):
    with FakeServer(*pieces) as server:
        assert fetch(server.url, b"{}", {"X-A": "1"}) == (200, b"hello world")
        assert server.requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nX-A: 1\r\n" in server.requests[0] and server.requests[0].endswith(b"{}")


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"SSH-2.0-OpenSSH\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",),
        (chunked(b"half"),),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300,),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",),
    ],
    ids=range(9),
)
def test_a_broken_answer_is_a_server_error(pieces):
    with FakeServer(*pieces) as server, pytest.raises(ServerError):
        fetch(server.url)


def test_an_endless_line_is_cut_off(monkeypatch):
    monkeypatch.setattr("ranvier.client.http.LIMITS", LIMITS.__class__(request_bytes_max=1000))
    with FakeServer(plain(b"data: " + b"x" * 5000)) as server:
        with pytest.raises(ServerError, match="1000"):
            stream(server.url)
        with pytest.raises(ServerError, match="1000"):
            fetch(server.url)


def test_no_server_is_told_with_what_to_do():
    with FakeServer() as server:
        url = server.url
    with pytest.raises(ServerError, match=r"No server answers at .*\n.*ranvier serve MODEL"):
        fetch(url)


def test_a_header_may_not_break_lines():
    with FakeServer() as server, pytest.raises(ConfigError, match="line break"):
        fetch(server.url, headers={"X": "a\r\nEvil: 1"})


def test_a_stream_gives_its_chunks_and_needs_its_end():
    lines = events('{"choices":[{"text":"a"}]}', '{"choices":[]}', "[DONE]")
    with FakeServer(chunked(b": keep-alive\n\n", *lines), END) as server:
        assert [chunk_text(chunk) for chunk in stream(server.url, "k")] == ["a", ""]
        assert b"\r\nAuthorization: Bearer k\r\n" in server.requests[0]
        assert server.requests[0].startswith(b"POST /v1/completions ")
    cut = pytest.raises(ServerError, match="without its last line")
    with FakeServer(chunked(*lines[:2]), END) as server, cut:
        stream(server.url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (plain(b'{"error":{"message":"no such model"}}', "404 X"), "404: no such model"),
        (plain(b'{"error":"Unauthorized"}', "401 X"), "--api-key"),
        (plain(b"<html>", "500 X"), "500"),
        (plain(b"data: {nonsense\n\n"), "not JSON"),
        (plain(b"data: 5\n\n"), "no object"),
        (plain(b'data: {"error":{"message":"the step failed"}}\n\n'), "the step failed"),
    ],
)
def test_refusals_and_errors_inside_a_stream_carry_the_servers_words(answer, said):
    with FakeServer(answer) as server, pytest.raises(ServerError, match=said):
        stream(server.url)


def test_models_are_listed_by_name():
    body = json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode()
    with FakeServer(plain(body)) as server:
        assert asyncio.run(Server(parse_url(server.url)).models()) == ["a", "b"]
    with FakeServer(plain(b"[]")) as server, pytest.raises(ServerError, match="OpenAI"):
        asyncio.run(Server(parse_url(server.url)).models())


def test_both_routes_chunks_have_text():
    chat = {"choices": [{"delta": {"reasoning": "hm ", "content": "yes"}}]}
    assert chunk_text(chat) == "hm yes"
    assert chunk_text({"choices": [{"text": "t"}]}) == "t"
    assert chunk_text({"choices": [{"delta": {"role": "assistant", "content": None}}]}) == ""
