"""Pictures from hosts over HTTP, and pictures that would hold a server up. All on loopback."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest

from ranvier.cli.media import fetcher_of, open_vision
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine, open_codec
from ranvier.core.limits import LIMITS
from ranvier.media import fetch
from ranvier.media.fetch import Fetcher
from ranvier.server.app import make_app
from ranvier.server.options import ServerOptions
from ranvier.server.pictures import PictureDesk
from tests.conftest import eventually
from tests.engine.test_pictures_llm import SIDE, picture
from tests.server.picture_host import Host, plain
from tests.server.running import Server
from tests.server.test_pictures import LIST, ask, part, png, shown, tiny_llava, url_of
from tests.unit.media.test_worker import many_scans

PREPARED = SIDE * SIDE * 3 * 4
"""Bytes of a picture as the tiny Llava's processor leaves it."""


@pytest.fixture(scope="module")
def host():
    answers = {
        "/a.png": (plain(png(picture(7))), True),
        "/away": (plain(b"", b"302 Found", head=b"location: /a.png\r\n"), True),
        "/none": (plain(b"", b"404 Not Found"), True),
        "/slow": (plain(png(picture(7))[:50], length=1000), False),
        "/large": (plain(b"", length=LIMITS.image_bytes_max + 1), False),
        "/endless": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMITS.image_bytes_max + 1), False),
        "/page": (plain(b"<html></html>"), True),
    }
    host = Host(answers)
    yield host
    host.close()


@pytest.fixture(scope="module")
def lookups():
    """Names asked of the resolver, in order."""
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory, host, lookups):
    given = tiny_llava(tmp_path_factory.mktemp("hosts"), LIST)
    given["allowed_media_domains"] = (f"pictures.test:{host.port}", f"inside.test:{host.port}")
    options = parse_options(given)
    artifact = ensure_artifact(options)
    engine = load_engine(artifact, options, [])
    info = engine.runner.info
    codec = open_codec(artifact, info.vocab_size, info.model_len_max, options)
    vision = open_vision(artifact, codec, info.vision, options)
    # Loopback is what the names of this test lead to: that one address is taken for public.
    fetcher = Fetcher(options.allowed_media_domains, accepts=lambda a: a == "127.0.0.1")
    desk = PictureDesk(vision, fetcher, info.vision.images_max, limit_s=3.0)
    own = ServerOptions(model_names=("sees",))

    with resolving(lookups, host.port):
        running = Server(engine, lambda client: make_app(own, codec, client, info, pictures=desk))
        running.options, running.desk = options, desk
        yield running
        running.stop()
    desk.close()


@contextmanager
def resolving(lookups, port):
    """Names that end in .test lead to loopback, inside.test to a private address too."""
    real = socket.getaddrinfo

    def resolve(name, *given, **more):
        if not str(name).endswith(".test"):
            return real(name, *given, **more)
        lookups.append(name)
        found = ["127.0.0.1", *(["10.0.0.7"] if name == "inside.test" else [])]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    socket.getaddrinfo = resolve
    try:
        yield
    finally:
        socket.getaddrinfo = real


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_a_picture_of_a_listed_host_is_fetched_once_from_a_pinned_address(
    server, ai, host, lookups
):
    host.heads.clear()
    lookups.clear()
    assert ask(ai, "w10", part(host.url("/a.png"))) == ask(ai, "w10", shown(7))
    assert lookups == ["pictures.test"], "a second lookup could lead elsewhere"
    (head,) = host.heads
    assert head.startswith(b"GET /a.png HTTP/1.1\r\nHost: pictures.test:")
    assert b"uthorization" not in head and b"ookie" not in head


@pytest.mark.parametrize(
    ("path", "name", "told"),
    [
        ("/away", "pictures.test", "redirects are not followed"),
        ("/none", "pictures.test", "answered 404"),
        ("/large", "pictures.test", "larger than 33554432 bytes"),
        ("/endless", "pictures.test", "larger than 33554432 bytes"),
        ("/page", "pictures.test", "of another kind; supported are PNG"),
        ("/a.png", "inside.test", "not public"),
        ("/a.png", "other.test", "not fetched from this host"),
        ("/a.png", "127.0.0.1", "not fetched from this host"),
    ],
)
def test_what_a_host_may_not_do_is_a_400(server, ai, host, path, name, told):
    asked = len(host.heads)
    with pytest.raises(openai.BadRequestError, match=told):
        ask(ai, "w10", part(host.url(path, name)))
    assert len(host.heads) - asked == (name == "pictures.test")
    assert server.is_idle()


def test_a_body_that_drips_is_cut_off_at_the_time_limit(server, ai, host, monkeypatch):
    monkeypatch.setattr(fetch, "LIMITS", replace(LIMITS, image_fetch_s=0.2))
    with pytest.raises(openai.BadRequestError, match=r"did not deliver it within 0\.2 s"):
        ask(ai, "w10", part(host.url("/slow")))
    assert ask(ai, "w10", part(host.url("/a.png"))) == ask(ai, "w10", shown(7))


def test_loopback_is_refused_where_nobody_made_an_exception(server, ai, host, monkeypatch):
    monkeypatch.setattr(server.desk, "_fetcher", fetcher_of(server.options))
    with pytest.raises(openai.BadRequestError, match="not public"):
        ask(ai, "w10", part(host.url("/a.png")))


def test_a_picture_that_is_slow_by_construction_is_ended_and_nobody_else_waits(server, ai):
    bomb = url_of(many_scans(5000), "jpeg")
    told = r"took longer than 3 s and was ended"
    with pytest.raises(openai.BadRequestError, match=told):
        ask(ai, "w10", part(bomb))
    assert ask(ai, "w10", shown(1)) == ask(ai, "w10", shown(1))
    eventually(server.is_idle, 5)


def test_pictures_beyond_a_message_are_a_400_before_it(server, ai, monkeypatch):
    """What the link's frame takes, made small; text alone is bounded by the same limit."""
    small = replace(LIMITS, request_bytes_max=2 * PREPARED, request_spare_bytes=PREPARED // 2)
    monkeypatch.setattr("ranvier.server.pictures.LIMITS", small)
    assert ask(ai, "w10", shown(1))
    with pytest.raises(openai.BadRequestError, match="once they are prepared.*fewer or smaller"):
        ask(ai, "w10", shown(1), shown(2))
    monkeypatch.undo()
    for module in ("client", "message"):
        monkeypatch.setattr(
            f"ranvier.link.{module}.LIMITS", replace(LIMITS, request_bytes_max=PREPARED)
        )
    with pytest.raises(openai.BadRequestError, match=f"together more than {PREPARED} bytes"):
        ask(ai, "w10", shown(1))
    monkeypatch.undo()
    assert ask(ai, "w10", shown(1), shown(2))
    assert server.is_idle()
