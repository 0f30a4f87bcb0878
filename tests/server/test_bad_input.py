"""Whatever comes in, the answer is a 4xx in the envelope that names the field; blocks return."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranvier.core.limits import LIMITS
from ranvier.server.wire.requests import UNSUPPORTED
from tests.conftest import eventually
from tests.server.simulated import LENGTH, simulated

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def server():
    running = simulated(max_num_queued_reqs=8, max_num_queued_tokens=200)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def refused(answer, status=400):
    """The error of an answer, whose envelope is checked."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"] and error["code"] == status
    assert "/root" not in error["message"] and "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": 1}, "logprobs"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"max_completion_tokens": LENGTH}, "max_tokens"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**40}, "seed"),
        ({"top_k": 2**31}, "top_k"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"cache_salt": "a/b"}, "cache_salt"),
        ({"request_id": "a b"}, "request_id"),
        ({"stream_options": 5}, "stream_options"),
        ({"user": 5}, "user"),
    ],
    ids=str,
)  # fmt: skip
def test_a_chat_request_that_is_wrong_is_a_400_that_names_the_field(http, fields, param):
    assert refused(http.post("/v1/chat/completions", json={**CHAT, **fields}))["param"] == param


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_known_field_that_is_not_supported_is_named_and_its_default_is_taken(http, name):
    for value in ("something", 7, {"x": 1}):
        answer = http.post("/v1/chat/completions", json={**CHAT, name: value})
        assert refused(answer)["param"] == name
    for value in (None, *UNSUPPORTED[name]):
        answer = http.post("/v1/chat/completions", json={**CHAT, name: value})
        assert answer.status_code == 200 and "x-ignored-params" not in answer.headers


def test_a_prompt_that_does_not_fit_tells_its_length_and_the_limit(http):
    message = refused(http.post("/v1/completions", json={"prompt": "x" * 500}))["message"]
    assert "500" in message and str(LENGTH) in message


def nested(depth):
    return ("[" * depth + "]" * depth).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', nested(10**6),
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a", "x": ' + nested(200) + b"}",
        b'{"prompt": "\\ud800"}', b'{"prompt": ' + b"9" * 10**5 + b"}",
    ],
    ids=lambda body: body[:24].decode(errors="replace") or "empty",
)  # fmt: skip
def test_bytes_that_are_no_request_are_a_400(http, body):
    refused(http.post("/v1/completions", content=body))


def test_a_body_nested_to_the_limit_is_taken(http):
    body = json.dumps({**TEXT, "x": json.loads(nested(LIMITS.json_depth_max - 1))})
    assert http.post("/v1/completions", content=body).status_code == 200
    body = json.dumps({**TEXT, "x": json.loads(nested(LIMITS.json_depth_max + 1))})
    refused(http.post("/v1/completions", content=body))


def test_a_huge_body_is_a_413_whether_it_tells_its_size_or_not(server, http):
    length = LIMITS.request_bytes_max + 1
    headers = {"content-length": str(length)}
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as raw:
        lines = [f"{k}: {v}" for k, v in {"host": "x", **headers}.items()]
        raw.sendall(("POST /tokenize HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        assert b" 413 " in raw.recv(200)
    part = b"x" * 2**20

    def parts():
        for _ in range(length // len(part) + 1):
            yield part

    refused(http.post("/tokenize", content=parts()), 413)


def test_headers_without_end_are_refused(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        raw.settimeout(10)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                raw.sendall(b"a: " + b"b" * 65536 + b"\r\n")
        assert b" 431 " in raw.recv(200)


def test_routes_and_methods_that_are_not_there(http):
    refused(http.get("/nowhere"), 404)
    refused(http.get("/v1/completions"), 405)
    refused(http.get("/v1/models/other"), 404)
    refused(http.post("/v1/completions", json={**TEXT, "model": "other"}), 404)
    refused(http.get("/tokenizer_info"), 404)


def test_unknown_fields_are_told_counted_and_refused_when_strict(http):
    before = _ignored(http)
    fields = {**TEXT, "tempratur": 1, "x\r\ny,z": 2}
    answer = http.post("/v1/completions", json=fields)
    assert answer.headers["x-ignored-params"] == "tempratur,x??y?z"
    assert _ignored(http) == before + 2
    strict = simulated(strict_params=True)
    try:
        answer = httpx.post(strict.url + "/v1/completions", json={**TEXT, "tempratur": 1})
        assert refused(answer)["param"] == "tempratur"
    finally:
        strict.stop()


def _ignored(http):
    lines = http.get("/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith("ranvier:ignored_request")).split()[1])


def test_what_would_wait_too_long_is_a_503_with_retry_after(server, http):
    held = server.hold()
    body = {"prompt": ["a" * 10] * 12, "max_tokens": 2}
    waiting = threading.Thread(target=lambda: httpx.post(server.url + "/v1/completions", json=body))
    waiting.start()
    eventually(lambda: server.app.state.gate.open_count == 1, 5)
    for fields, reason in (({"prompt": "a"}, "max_num_queued_reqs"),):
        answer = http.post("/v1/completions", json=fields)
        error = refused(answer, 503)
        assert answer.headers["retry-after"] == "1" and reason in error["message"]
        assert f'admission_rejections_total{{model_name="sim",reason="{reason}"}} 1.0' in (
            http.get("/metrics").text
        )
    held.set()
    waiting.join(10)
    eventually(server.is_idle, 5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_gives_its_blocks_back(server, stream):
    held = server.hold()
    body = json.dumps({"prompt": "a", "max_tokens": 90, "stream": stream, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    raw.sendall((head + body).encode())
    eventually(lambda: server.engine.has_work, 5)
    raw.close()
    eventually(lambda: server.app.state.gate.open_count == 0, 5)
    held.set()
    eventually(server.is_idle, 5)


def test_a_reader_that_does_not_read_delays_no_one(server, http):
    body = json.dumps(
        {"prompt": ["a"] * 8, "max_tokens": 90, "stream": True, "ignore_eos": True, "logprobs": 20}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        raw.sendall((head + body).encode())
        eventually(lambda: server.app.state.gate.open_count == 1, 5)
        assert http.post("/v1/completions", json=TEXT).status_code == 200
    eventually(server.is_idle, 10)


def numbers():
    return st.one_of(
        st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.sampled_from([0, 1, -1, 2**31])
    )


def values():
    plain = st.one_of(numbers(), st.none(), st.text(max_size=8), st.just([]), st.just({}))
    deep = st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=4), plain, max_size=3)
    return plain | deep


def likely(schema, definitions):
    """Values that a property's schema suggests, and now and then anything."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return likely(definitions[name], definitions)
    if "anyOf" in schema:
        return st.one_of([likely(item, definitions) for item in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "integer":
        low, high = schema.get("minimum", 0), schema.get("maximum", 300)
        return st.integers(max(low, -3), min(high, 40)) | st.integers(-(2**64), 2**64)
    if kind == "array":
        items = schema.get("items") or {}
        inner = likely(items, definitions) if isinstance(items, dict) else values()
        return st.lists(inner, max_size=4)
    simple = {
        "boolean": st.booleans(), "null": st.none(), "string": st.text(max_size=6),
        "number": st.floats(0, 2) | st.floats(),
    }  # fmt: skip
    return simple.get(kind, values())


def test_no_body_made_after_the_schema_is_ever_a_500(server, http):
    document = http.get("/openapi.json").json()
    definitions = document["components"]["schemas"]
    routes = {
        path: definitions[item["post"]["requestBody"]["content"]["application/json"]["schema"]
                          ["$ref"].rsplit("/", 1)[1]]
        for path, item in document["paths"].items() if "requestBody" in item.get("post", {})
    }  # fmt: skip
    fields = {
        path: st.fixed_dictionaries(
            {
                name: likely(schema["properties"][name], definitions)
                for name in schema.get("required", ())
            },
            optional={
                name: likely(inner, definitions)
                for name, inner in schema["properties"].items()
                if name not in schema.get("required", ())
            },
        )
        for path, schema in routes.items()
    }
    good = {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": CHAT["messages"]},
    }

    @settings(
        max_examples=250, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(data=st.data())
    def fuzz(data):
        path = data.draw(st.sampled_from(sorted(fields)))
        body = data.draw(fields[path])
        keep = data.draw(st.lists(st.sampled_from(sorted(body) or ["x"]), max_size=4))
        body = {k: v for k, v in body.items() if k in keep or k not in good.get(path, {})}
        body = {**good.get(path, {}), **{k: body[k] for k in keep if k in body}}
        text = json.dumps(body, allow_nan=True)
        answer = http.post(path, content=text.encode(errors="surrogatepass"))
        assert answer.status_code in (200, 400, 404), (answer.text, text)
        if answer.status_code != 200:
            refused(answer, answer.status_code)

    fuzz()
    eventually(server.is_idle, 10)
    assert http.get("/health").status_code == 200
