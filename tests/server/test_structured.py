"""Structured outputs over HTTP: the openai client, old names, and grammars of strangers."""

from __future__ import annotations

import json
import re
import time

import httpx
import jsonschema
import openai
import pytest

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import open_engine
from ranvier.server.app import make_app
from ranvier.server.options import ServerOptions
from tests.server.running import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"},
    },
    "required": ["id", "on"], "additionalProperties": False,
}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "row", "schema": SCHEMA, "strict": True}}
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server(tiny_options):
    guess = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 1}
    options = parse_options({**tiny_options, "speculative_config": guess})
    engine, codec = open_engine(options, [])
    engine.scheduler.speculation.policy.choose = lambda rows, rooms: 2 * any(rooms)
    served = ServerOptions(model_names=("tiny",))
    running = Server(engine, lambda client: make_app(served, codec, client, engine.runner.info))
    yield running
    running.stop()


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def asked(http, **fields):
    body = {
        "model": "tiny",
        "prompt": "id",
        "max_tokens": 100,
        "temperature": 1,
        "seed": 2,
        **fields,
    }
    return http.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_by_the_openai_client(ai, stream):
    found = ai.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=FORMAT, max_tokens=100, n=2, seed=4,
        stream=stream,
    )  # fmt: skip
    texts = {0: "", 1: ""}
    if stream:
        for chunk in found:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in found.choices}
    assert len(set(texts.values())) == 2
    for text in texts.values():
        jsonschema.validate(json.loads(text), SCHEMA)


def test_each_name_of_the_same_wish(http):
    for fields in (
        {"response_format": FORMAT}, {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
        {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"},
    ):  # fmt: skip
        answer = asked(http, **fields)
        assert answer.status_code == 200, answer.text
        jsonschema.validate(json.loads(answer.json()["choices"][0]["text"]), SCHEMA)
    for fields in ({"guided_regex": "[ab]{3}"}, {"structured_outputs": {"regex": "[ab]{3}"}}):
        assert re.fullmatch("[ab]{3}", asked(http, **fields).json()["choices"][0]["text"])
    for fields in (
        {"guided_choice": ["yes", "no"]},
        {"structured_outputs": {"choice": ["yes", "no"]}},
    ):
        assert asked(http, **fields).json()["choices"][0]["text"] in ("yes", "no")
    lark = {"guided_grammar": 'start: "x" ("y" | "z")'}
    assert asked(http, **lark).json()["choices"][0]["text"] in ("xy", "xz")
    assert asked(http, response_format={"type": "text"}, max_tokens=3).status_code == 200
    whole = asked(http, response_format={"type": "json_object"}, max_tokens=60)
    assert whole.json()["choices"][0]["text"].startswith("{")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "JSON Schema"),
        ({"response_format": {"type": "yaml"}}, "response_format", "known: text, json_object"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly"),
        ({"structured_outputs": {"structural_tag": {}, "regex": "a"}}, "structured_outputs", ""),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs", "regexp"),
        ({"guided_regex": "[a"}, "structured_outputs", "unclosed character class"),
        ({"guided_json": "{"}, "structured_outputs", ""),
        ({"guided_json": {"type": "objec"}}, "structured_outputs", "objec"),
        ({"guided_grammar": "begin: x"}, "structured_outputs", ""),
        ({"guided_choice": []}, "guided_choice", "none empty"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "exclude"),
        ({"guided_regex": "a", "ignore_eos": True}, None, "ignore_eos"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_400_that_says_what(http, fields, param, said):
    answer = asked(http, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param is None or error["param"] == param
    assert said in error["message"]


def test_grammars_that_take_too_much_hurt_nobody(http):
    many = "|".join(f"x{i}y" for i in range(25_000))
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    for fields in (
        {"guided_regex": "(a+)+$"}, {"guided_regex": many}, {"guided_regex": "(a{1,1000}){1,1000}"},
        {"guided_regex": r"[\p{L}]{1,50}\P{L}"}, {"guided_json": schema},
        {"guided_json": {"type": "string", "pattern": "a" * 300_000}},
    ):  # fmt: skip
        start = time.perf_counter()
        answer = asked(http, max_tokens=4, **fields)
        assert answer.status_code in (200, 400), answer.text
        assert time.perf_counter() - start < 20
        assert asked(http, max_tokens=2).status_code == 200
