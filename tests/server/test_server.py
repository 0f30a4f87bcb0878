"""The real openai client against the real app, on a real engine with a tiny model."""

from __future__ import annotations

import threading

import httpx
import openai
import pytest

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import open_engine
from ranvier.server.app import make_app
from ranvier.server.http.front import OPEN_PATHS
from ranvier.server.options import ServerOptions
from tests.server.running import Server

KEY = "secret"


@pytest.fixture(scope="module")
def server(tiny_options):
    engine, codec = open_engine(parse_options(tiny_options), [])
    options = ServerOptions(model_names=("tiny", "alias"), api_keys=(KEY,))
    running = Server(engine, lambda client: make_app(options, codec, client, engine.runner.info))
    yield running
    running.stop()


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def http(server):
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_chat_whole_and_streamed_are_the_same(ai):
    options = dict(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    whole = ai.chat.completions.create(**options)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens <= 12
    chunks = list(
        ai.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].delta.role for c in chunks if c.choices].count("assistant") == 1
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_chat_logprobs(ai):
    out = ai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=4
    )
    content = out.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 4 for entry in content)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)


def test_completion_forms_n_echo_and_logprobs(ai):
    forms = ["Hello", [10, 20, 30], ["a", "b"], [[10, 20], [30]]]
    for prompt, count in zip(forms, (1, 1, 2, 2), strict=True):
        out = ai.completions.create(model="tiny", prompt=prompt, max_tokens=4, n=2)
        assert len(out.choices) == 2 * count
        assert [c.index for c in out.choices] == list(range(2 * count))
    out = ai.completions.create(
        model="tiny", prompt="Hello", max_tokens=2, echo=True, logprobs=1, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    logprobs = out.choices[0].logprobs
    assert out.choices[0].text.startswith("Hello")
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 7
    assert logprobs.token_logprobs[0] is None
    scored = ai.completions.create(
        model="tiny", prompt=[[10, 20, 30]], max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    assert len(scored.choices[0].logprobs.token_logprobs) == 3


def test_a_stop_string_ends_a_stream(ai):
    options = dict(model="tiny", prompt="Hello", max_tokens=20, temperature=0)
    text = ai.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[2:4]
    chunks = list(
        ai.completions.create(**options, stop=stop, stream=True, extra_body={"ignore_eos": True})
    )
    assert "".join(c.choices[0].text for c in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models_tokenize_probes_and_metrics(ai, http):
    assert [m.id for m in ai.models.list().data] == ["tiny", "alias"]
    assert ai.models.retrieve("tiny").id == "tiny"
    ids = http.post("/tokenize", json={"prompt": "Hello"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == "Hello"
    for path in OPEN_PATHS:
        assert httpx.get(str(http.base_url) + path).status_code == 200
    assert "vllm:generation_tokens_total" in http.get("/metrics").text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [160]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x" * 500}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "max_tokens": 1000}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "n": 10**9}, "n"),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
        ({"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias"),
        ({"prompt": "a", "stop": ["", "b"]}, "stop"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stream": True, "best_of": 3}, "best_of"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(http, fields, param):
    answer = http.post("/v1/completions", json=fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == 400


def test_wrong_json_model_route_and_method_use_the_envelope(http):
    cases = [
        (http.post("/v1/completions", content=b"{"), 400),
        (http.post("/v1/completions", content=b'{"prompt": "a", "temperature": NaN}'), 400),
        (http.post("/v1/completions", json={"prompt": "a", "model": "other"}), 404),
        (http.get("/nowhere"), 404),
        (http.get("/v1/completions"), 405),
    ]
    for answer, status in cases:
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == status


def test_unknown_fields_are_reported(http):
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "tempratur": 1})
    assert answer.headers["x-ignored-params"] == "tempratur"


def test_every_route_but_the_probes_needs_the_key(server):
    for route in server.app.routes:
        path = route.path.replace("{name:path}", "tiny")
        for headers in ({}, {"authorization": "Bearer wrong"}):
            status = httpx.get(server.url + path, headers=headers).status_code
            assert (status == 401) == (path not in OPEN_PATHS), path


def test_a_client_that_leaves_frees_its_blocks(server, ai):
    stream = ai.completions.create(
        model="tiny", prompt="Hello", max_tokens=100, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    for _ in range(200):
        stats = server.client.stats()
        if stats.blocks_free == stats.blocks_total and not server.engine.has_work:
            return
        threading.Event().wait(0.02)
    raise AssertionError("the request was not cancelled")
