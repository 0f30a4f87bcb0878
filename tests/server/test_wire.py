"""The wire on a simulated engine: what the openai client reads, every field that is promised."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.conftest import eventually
from tests.server.simulated import LENGTH, simulated

MESSAGES = [{"role": "user", "content": "Hi"}]
ON = {"ignore_eos": True, "skip_special_tokens": False}


@pytest.fixture(scope="module")
def server():
    running = simulated(
        enable_tokenizer_info_endpoint=True, enable_server_load_tracking=True, server_dev_mode=True,
        metrics_compat=True, allowed_origins=("https://a.example",), sse_keep_alive_interval=0.05,
    )  # fmt: skip
    yield running
    running.stop()


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)


def post(http, route, **fields):
    answer = http.post(route, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(http, route, **fields):
    """The chunks of a stream; its last line is checked."""
    fields = {"stream": True, **fields}
    with http.stream("POST", route, json=fields) as answer:
        kind = answer.headers["content-type"]
        assert kind.startswith("text/event-stream"), answer.read()
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_chat_completion_has_these_fields_and_no_others(http):
    got = post(http, "/v1/chat/completions", messages=MESSAGES, max_tokens=3, **ON)
    assert list(got) == [
        "id", "object", "created", "model", "choices", "usage", "system_fingerprint",
    ]  # fmt: skip
    assert got["id"].startswith("chatcmpl-") and got["object"] == "chat.completion"
    assert got["system_fingerprint"].startswith("ranvier-")
    choice = got["choices"][0]
    assert list(choice) == ["index", "message", "logprobs", "finish_reason", "stop_reason"]
    assert choice["finish_reason"] == "length"
    assert list(choice["message"]) == [
        "role", "content", "refusal", "tool_calls", "reasoning", "reasoning_content",
    ]  # fmt: skip
    assert got["usage"]["completion_tokens"] == 3
    assert got["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_a_chat_stream_tells_its_role_once_and_ends_with_usage(http, ai):
    options = {"include_usage": True, "continuous_usage_stats": True}
    got = chunks(
        http, "/v1/chat/completions", messages=MESSAGES, max_tokens=5, n=2, stream_options=options,
        **ON,
    )  # fmt: skip
    assert {c["object"] for c in got} == {"chat.completion.chunk"}
    assert len({c["id"] for c in got}) == 1
    roles = [c["choices"][0]["delta"].get("role") for c in got if c["choices"]]
    assert roles.count("assistant") == 2 and all(role in (None, "assistant") for role in roles)
    assert got[-1]["choices"] == [] and got[-1]["usage"]["completion_tokens"] == 10
    assert all(c["usage"]["prompt_tokens"] == got[-1]["usage"]["prompt_tokens"] for c in got)
    options = dict(model="sim", messages=MESSAGES, max_tokens=5, extra_body=ON)
    own = list(ai.chat.completions.create(**options, stream=True))
    whole = ai.chat.completions.create(**options)
    assert own[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert "".join(c.choices[0].delta.content or "" for c in own)


def test_streams_say_what_whole_answers_say(http):
    fields = {
        "prompt": ["ab", "héllo"], "max_tokens": 9, "n": 2, "seed": 5, "logprobs": 2, "echo": True,
        "return_token_ids": True, **ON,
    }  # fmt: skip
    whole = post(http, "/v1/completions", **fields)
    for interval in (1, 4):
        got = chunks(http, "/v1/completions", **fields, stream_interval=interval)
        for choice in whole["choices"]:
            own = [c["choices"][0] for c in got if c["choices"][0]["index"] == choice["index"]]
            assert "".join(c["text"] for c in own) == choice["text"]
            assert sum((c["token_ids"] for c in own), []) == choice["token_ids"]
            assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
            for name, value in choice["logprobs"].items():
                assert sum((c["logprobs"][name] for c in own), []) == value
    assert len(got) <= 4 * 3  # the first token, then every fourth, then the end


def test_echo_and_scores_as_evaluation_harnesses_ask_for_them(http):
    prompts = [[70, 71, 72, 73], [80, 81]]
    for count in (1, 0):
        got = post(
            http, "/v1/completions", prompt=prompts, echo=True, logprobs=1, max_tokens=count,
            temperature=0, seed=1234,
        )  # fmt: skip
        for prompt, choice in zip(prompts, got["choices"], strict=True):
            logprobs = choice["logprobs"]
            assert len(logprobs["token_logprobs"]) == len(prompt) + count
            assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
            assert all(len(top) >= 1 for top in logprobs["top_logprobs"][1:])
            assert logprobs["text_offset"][: len(prompt)] == list(range(len(prompt)))
            assert "prompt_logprobs" not in choice


def test_chat_echo_prompt_logprobs_and_token_ids(http):
    messages = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    got = post(
        http, "/v1/chat/completions", messages=messages, max_tokens=2, echo=True,
        continue_final_message=True, add_generation_prompt=False, prompt_logprobs=1,
        return_token_ids=True, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True, **ON,
    )  # fmt: skip
    assert got["choices"][0]["message"]["content"].startswith("It is")
    assert len(got["prompt_logprobs"]) == len(got["prompt_token_ids"])
    assert len(got["choices"][0]["token_ids"]) == 2
    entry = got["choices"][0]["logprobs"]["content"][0]
    assert entry["token"].startswith("token_id:") and len(entry["top_logprobs"]) == 2


def test_truncation_is_told(http):
    answer = http.post(
        "/v1/completions", json={"prompt": "x" * 200, "truncate_prompt_tokens": 10, "max_tokens": 1}
    )
    assert answer.status_code == 200
    assert answer.headers["x-truncated-tokens"] == "190"
    assert answer.json()["usage"]["prompt_tokens_details"]["truncated_tokens"] == 190
    sides = {
        side: post(
            http, "/v1/completions", prompt="abcdef", truncate_prompt_tokens=2, max_tokens=1,
            truncation_side=side, echo=True, **ON,
        )["choices"][0]["text"][:2]
        for side in ("left", "right")
    }  # fmt: skip
    assert sides == {"left": "ef", "right": "ab"}


def test_models_tokens_and_what_flags_add(http, ai):
    assert post(http, "/tokenize", prompt="ab", return_token_strs=True)["token_strs"] == ["a", "b"]
    chat = post(http, "/tokenize", messages=MESSAGES)
    assert post(http, "/detokenize", tokens=chat["tokens"])["prompt"] == "[user]Hi[assistant]"
    assert chat["max_model_len"] == LENGTH
    card = ai.models.retrieve("sim")
    assert card.model_dump()["max_model_len"] == LENGTH and card.created == 7
    told = http.get("/tokenizer_info").json()
    assert told["eos_token"] == "</s>" and "/secret" not in json.dumps(told)
    assert http.get("/load").json() == {"server_load": 0}
    assert http.post("/reset_prefix_cache").status_code == 200
    assert http.get("/ping").status_code == http.post("/ping").status_code == 200


def test_request_ids_are_echoed_and_may_not_be_in_use_twice(http, server):
    answer = http.post("/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1" and answer.json()["id"] == "cmpl-abc-1"
    assert http.get("/version").headers["x-request-id"]
    bad = http.get("/version", headers={"x-request-id": "a b"})
    assert bad.status_code == 400
    held = server.hold()
    fields = {"prompt": "a", "max_tokens": 2, "request_id": "mine", "stream": True}
    with http.stream("POST", "/v1/completions", json=fields) as stream:
        lines = stream.iter_lines()
        next(lines)
        second = httpx.post(server.url + "/v1/completions", json={**fields, "stream": False})
        assert second.status_code == 400 and second.json()["error"]["param"] == "request_id"
        held.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    eventually(lambda: http.get("/load").json()["server_load"] == 0, 5)


def test_cors_is_closed_but_for_the_origins_named(http):
    asked = {"access-control-request-method": "POST"}
    for origin, is_allowed in (("https://a.example", True), ("https://b.example", False)):
        headers = {"origin": origin, **asked}
        answer = http.options("/v1/completions", headers=headers)
        assert ("access-control-allow-origin" in answer.headers) == is_allowed


def test_idle_streams_get_comments(http, server):
    held = server.hold()
    fields = {"prompt": "a", "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/completions", json=fields) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": keep-alive"
        held.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_openapi_is_made_of_the_structs(http, server):
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["CompletionRequest"]["required"] == ["prompt"]
    assert schemas["ChatRequest"]["properties"]["top_p"]["anyOf"][0]["maximum"] == 1
    paths = {route.path.replace(":path", "") for route in server.app.routes}
    assert set(document["paths"]) == paths - {"/openapi.json"}
    references = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {reference.split('"')[0] for reference in references} <= set(schemas)
