"""Guesses in the engine on a simulated device: the end of a context, streams, counters."""

from __future__ import annotations

import pytest

from ranvier.core.config import EngineConfig, SpeculationConfig
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.schedule.sequence import Sequence
from ranvier.sim.checker import check_scheduler
from ranvier.sim.runner import SimulatedRunner, next_token
from tests.sim import storm

K = storm.DRAFTS
LENGTH = 64
METHODS = ["ngram", "draft_model"]


def make(method, *, is_ragged=True, skill=1.0, blocks=200, order="plain"):
    scenario = storm.Scenario(0, method=method, is_ragged=is_ragged)
    info = RunnerInfo(
        buckets=scenario.buckets, rows_max=4, block_tokens=4, block_count=blocks,
        model_len_max=LENGTH, vocab_size=scenario.vocab, logprobs_max=4, edits_max=64,
    )  # fmt: skip
    runner = SimulatedRunner(info)
    runner.skill = skill
    speculation = SpeculationConfig(method=method, lookup_min=1, lookup_max=2)
    config = EngineConfig(max_num_batched_tokens=32, order=order, speculation=speculation)
    return Engine(runner, config, storm.Weather(1))


def request(name, ids, **params):
    params = {"max_tokens": None, "temperature": 0, "ignore_eos": True, **params}
    return Request(
        request_id=name, prompt_token_ids=ids, params=SamplingParams(**params), seed=len(name)
    )


def expected(prompt, count, vocab):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, 0.0, vocab))
    return tokens[len(prompt) :]


def drain(engine, requests):
    tokens, reasons = {}, {}
    for one in requests:
        engine.admit(one)
    while engine.has_work:
        for event in engine.turn():
            assert len(event.token_ids) <= 1, "a token an event, whatever a step yields"
            tokens.setdefault(event.request_id, []).extend(event.token_ids)
            if event.finish_reason is not None:
                reasons[event.request_id] = event.finish_reason
        check_scheduler(engine.scheduler)
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    return tokens, reasons


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_ragged", [True, False])
@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("length", range(LENGTH - 2 * (K + 1), LENGTH))
def test_every_length_near_the_limit_is_served_to_the_limit(method, is_ragged, order, length):
    engine = make(method, is_ragged=is_ragged, order=order)
    vocab = engine.runner.info.vocab_size
    prompts = {"a": length, "bb": 5, "ccc": LENGTH - length, "dddd": length}
    asked = [request(name, [i % vocab for i in range(n)]) for name, n in prompts.items()]
    tokens, reasons = drain(engine, asked)
    for one in asked:
        prompt = one.prompt_token_ids
        assert tokens[one.request_id] == expected(prompt, LENGTH - len(prompt), vocab)
    assert set(reasons.values()) == {"length"}
    assert engine.stats().accepted_tokens > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", range(1, 10))
def test_max_tokens_is_met_exactly(method, count):
    engine = make(method)
    tokens, _ = drain(engine, [request("a", [1, 2, 1, 2, 1, 2], max_tokens=count)])
    assert len(tokens["a"]) == count


@pytest.mark.parametrize("method", METHODS)
def test_an_end_token_within_accepted_drafts_is_the_last(method):
    engine = make(method)
    vocab = engine.runner.info.vocab_size
    want = expected([1, 2, 1, 2, 1, 2], 40, vocab)
    stop = want[7]
    one = request("a", [1, 2, 1, 2, 1, 2], stop_token_ids=[stop])
    tokens, reasons = drain(engine, [one])
    assert tokens["a"] == want[: want.index(stop) + 1]
    assert reasons["a"] == "stop"


def test_a_perfect_drafter_takes_few_steps_and_is_counted():
    engine = make("draft_model")
    engine.scheduler.speculation.policy.choose = lambda rows, rooms: K if any(rooms) else 0
    drain(engine, [request("a", [5], max_tokens=40)])
    stats = engine.stats()
    assert stats.steps < 20
    assert stats.accepted_tokens == stats.draft_tokens == sum(stats.accepted_per_position)
    assert stats.accepted_per_position[0] == stats.drafts


def test_a_placeholder_beyond_the_vocabulary_is_never_guessed():
    speculation = make("ngram").scheduler.speculation
    sequence = Sequence(request("a", [1, 2, 7, 1, 2]), 0, 0.0)
    room, found = speculation._guess(sequence, SpeculationConfig(method="ngram", lookup_min=1))
    assert (room, found) == (0, [])
    sequence.tokens[2] = 1
    assert speculation._guess(sequence, SpeculationConfig(method="ngram"))[1] == [1, 1, 2]


def test_without_a_method_nothing_is_guessed():
    scenario = storm.Scenario(3)
    assert storm.run(scenario).accepted == 0
