"""The socket between the two processes: whatever comes over it, the engine stays whole."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest
from tests.conftest import eventually
from tests.server.simulated import simulated_engine

from ranvier.core.errors import CapacityError, CheckpointError, ModelNotFound, RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.link.message import (
    HEAD,
    Admit,
    Cancel,
    Failure,
    FromEngine,
    News,
    ProtocolFault,
    Refused,
    Stop,
    decode,
    frame,
    frame_size,
)
from ranvier.link.service import EngineLink, EngineService


class Front:
    """The other end of a service in a thread."""

    def __init__(self, engine):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.is_closed = threading.Event()
        link = EngineLink(theirs, self.is_closed.set)
        self.thread = threading.Thread(target=EngineService(engine, link).run)
        self.thread.start()

    def say(self, *messages):
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def hear(self):
        """Messages until the connection ends."""
        decoder = msgspec.msgpack.Decoder(FromEngine)
        with self.socket.makefile("rb") as stream:
            while head := stream.read(HEAD.size):
                yield decode(stream.read(frame_size(head)), decoder)


def request(name, **params):
    params = SamplingParams(temperature=0, ignore_eos=True, **params)
    return Request(request_id=name, prompt_token_ids=[5, 6, 7], params=params, seed=1)


def tokens_of(front, name):
    """A request's tokens, from admission to its end."""
    front.say(Admit([request(name, max_tokens=5)]))
    found = []
    for message in front.hear():
        for event in message.events if isinstance(message, News) else ():
            if event.request_id == name:
                found += event.token_ids
                if event.finish_reason:
                    assert event.finish_reason == "length"
                    return found
    raise AssertionError("the connection ended")


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(LIMITS.request_bytes_max + 1),
        HEAD.pack(2**32 - 1),
        HEAD.pack(3) + b"\xc1\xc1\xc1",
        HEAD.pack(6) + msgspec.msgpack.encode({"a": 1})[:3] + b"\x00\x00\x00",
        HEAD.pack(0),
        frame(Stop())[:-1] + b"\xff",
        HEAD.pack(100_000) + b"\x91" * 100_000,
        HEAD.pack(50) + b"short",
    ],
    ids=["beyond", "4 GiB", "no msgpack", "no message", "empty", "cut", "nested", "hang up"],
)
def test_a_malformed_frame_closes_the_connection_and_the_engine_serves_the_next(data):
    engine = simulated_engine()
    front = Front(engine)
    expected = tokens_of(front, "a")
    front.say(Admit([request("b", max_tokens=90)]))
    front.socket.sendall(data)
    front.socket.shutdown(socket.SHUT_WR)
    list(front.hear())
    front.thread.join(10)
    assert front.is_closed.wait(5) and not front.thread.is_alive()
    pool = engine.scheduler.pool
    assert pool.free == pool.total
    again = Front(engine)
    assert tokens_of(again, "a") == expected
    again.say(Stop())
    again.thread.join(10)


def test_params_that_are_out_of_range_are_malformed_too():
    wrong = msgspec.json.decode(msgspec.json.encode(Admit([request("a")])))
    wrong["requests"][0]["params"]["temperature"] = -5
    body = msgspec.msgpack.encode(wrong)
    with pytest.raises(ProtocolFault, match="temperature"):
        decode(body, msgspec.msgpack.Decoder(Admit))


def test_what_is_not_admitted_is_refused_with_its_reason_and_the_rest_goes_on():
    front = Front(simulated_engine())
    front.say(Admit([request("long", max_tokens=4), request("long", max_tokens=4)]))
    refused = next(m for m in front.hear() if isinstance(m, Refused))
    error = refused.failure.error()
    assert isinstance(error, RequestError) and error.param == "request_id"
    assert len(tokens_of(front, "other")) == 5
    front.say(Cancel("unknown"), Stop())
    front.thread.join(10)


def test_an_idle_engine_is_heard_and_the_numbers_come_twice_a_second():
    front = Front(simulated_engine())
    heard = [message for message, _ in zip(front.hear(), range(4), strict=False)]
    assert any(message.stats is not None for message in heard)
    front.say(Stop())
    front.thread.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_loop_is_told_and_ends_the_service():
    engine = simulated_engine()
    engine.runner.on_step = lambda plan: 1 / 0
    front = Front(engine)
    front.say(Admit([request("a")]))
    failure = next(m for m in front.hear() if isinstance(m, Failure))
    front.thread.join(10)
    assert "ZeroDivisionError" in failure.message and "/" not in failure.message


@pytest.mark.parametrize(
    "error",
    [
        CapacityError("full", retry_after_s=7, hint="later"),
        ModelNotFound("no model", param="model"),
        RequestError("wrong", param="n"),
        CheckpointError("file", hint="download"),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error):
    body = msgspec.msgpack.encode(Failure.of(error))
    other = msgspec.msgpack.decode(body, type=Failure).error()
    assert type(other) is type(error) and vars(other) == vars(error)


def test_the_reader_ends_when_the_front_dies():
    front = Front(simulated_engine())
    front.say(Admit([request("a", max_tokens=90)]))
    front.socket.close()
    eventually(lambda: not front.thread.is_alive(), 5)
