"""metrics of an answer: times and guesses of its own request, by vLLM's names, where asked for."""

from __future__ import annotations

import openai
import pytest

from ranvier.cli.main import main
from tests.server.simulated import simulated

MESSAGES = [{"role": "user", "content": "Hi"}]
TIMES = {
    "time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms",
    "tokens_per_second",
}  # fmt: skip
ASK = {"model": "sim", "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module", params=["summary", "detailed"])
def level(request):
    return request.param


@pytest.fixture(scope="module")
def ai(level):
    running = simulated(
        drafts=(3,), enable_per_request_metrics=True, per_request_spec_decode_metrics=level
    )
    yield openai.OpenAI(base_url=running.url + "/v1", api_key="x", max_retries=0)
    running.stop()


def check(metrics, level):
    guesses = metrics.pop("speculative_decoding")
    assert set(metrics) == TIMES
    assert all(value >= 0 for value in metrics.values()) and metrics["tokens_per_second"] > 0
    steps, histogram = guesses["num_spec_steps"], guesses["acceptance_histogram"]
    assert guesses["num_spec_tokens"] == 3 and len(histogram) == 4 and sum(histogram) == steps > 4
    accepted = guesses["num_accepted_draft_tokens"]
    assert accepted == guesses["num_draft_tokens"] == sum(j * n for j, n in enumerate(histogram))
    assert guesses["mean_acceptance_length"] == pytest.approx(1 + accepted / steps)
    assert guesses["draft_acceptance_rate"] == 1
    assert ("per_step_accepted" in guesses) == (level == "detailed")
    if level == "detailed":
        assert guesses["per_step_accepted"] == guesses["per_step_drafted"]
        assert sum(guesses["per_step_drafted"]) == accepted and max(histogram) <= steps


def test_whole_answers_tell(ai, level):
    chat = ai.chat.completions.create(messages=MESSAGES, **ASK)
    check(chat.model_extra["metrics"], level)
    check(ai.completions.create(prompt="Hi", **ASK).model_extra["metrics"], level)


def test_the_usage_chunk_of_a_stream_tells_and_no_other(ai, level):
    more = {"stream": True, "stream_options": {"include_usage": True}}
    for stream in (
        ai.chat.completions.create(messages=MESSAGES, **more, **ASK),
        ai.completions.create(prompt="Hi", **more, **ASK),
    ):
        chunks = list(stream)
        assert not any("metrics" in chunk.model_extra for chunk in chunks[:-1])
        check(chunks[-1].model_extra["metrics"], level)


def test_several_sequences_have_no_one_time(ai):
    ask = {**ASK, "temperature": 1}
    assert ai.completions.create(prompt="Hi", n=2, **ask).model_extra["metrics"] is None
    assert ai.completions.create(prompt=["a", "b"], **ASK).model_extra["metrics"] is None


def test_one_token_has_no_gap_between_tokens(ai):
    metrics = ai.completions.create(prompt="Hi", **{**ASK, "max_tokens": 1}).model_extra["metrics"]
    assert metrics["mean_itl_ms"] is None and metrics["generation_time_ms"] == 0
    assert metrics["speculative_decoding"]["num_spec_steps"] == 0


def test_guesses_alone_and_of_an_engine_that_makes_none():
    running = simulated(per_request_spec_decode_metrics="summary")
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="x", max_retries=0)
    answer = client.completions.create(prompt="Hi", **ASK)
    running.stop()
    assert answer.model_extra["metrics"] == {"speculative_decoding": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--per-request-spec-decode-metrics", "all"], "is 'all'; supported: none, summary"),
        (["--per-request-spec-decode-metrics", "summary"], "there is no speculative_config"),
    ],
)
def test_what_cannot_be_told_stops_the_start(words, message, tmp_path, capsys):
    assert main(["serve", str(tmp_path), *words]) != 0
    assert message in capsys.readouterr().err
