"""The real engine on a simulated device: scenarios x seeds, faults, pressure, both orders."""

from __future__ import annotations

import random

import pytest

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.errors import CapacityError, RequestError
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.sim.runner import SimulatedRunner, next_token

VOCAB = 997
TURNS_MAX = 20_000


def info(blocks=400, rows=8, length=96):
    return RunnerInfo(
        buckets=BucketSet(tokens=(1, 8, 32)), rows_max=rows, block_tokens=4, block_count=blocks,
        model_len_max=length, vocab_size=VOCAB, logprobs_max=4, edits_max=64,
    )  # fmt: skip


def make(order="plain", fault_rate=0.0, caching=True, **sizes):
    runner = SimulatedRunner(info(**sizes), fault_rate=fault_rate)
    config = EngineConfig(max_num_batched_tokens=32, enable_prefix_caching=caching, order=order)
    return Engine(runner, config)


def request(name, ids, **params):
    params.setdefault("max_tokens", 12)
    params.setdefault("temperature", 0)
    return Request(
        request_id=name, prompt_token_ids=ids, params=SamplingParams(**params), seed=len(name)
    )


def expected(prompt, count):
    """What the simulated model says of a prompt, alone, greedy."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, 0.0, VOCAB))
    return tokens[len(prompt) :]


def workload(seed, count=24):
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB) for _ in range(24)]
    for i in range(count):
        own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 50))]
        head = shared[: rng.choice([0, 8, 24])]
        yield request(f"r{i}", head + own, max_tokens=rng.randint(1, 20))


def drain(engine, arrivals=(), cancel=None):
    """Run to the end; tokens and finish reasons by (request, index)."""
    arrivals, tokens, reasons = list(arrivals), {}, {}
    for turn in range(TURNS_MAX):
        if arrivals and turn % 2 == 0:
            engine.admit(arrivals.pop(0))
        if cancel is not None:
            cancel(turn, engine)
        for event in engine.turn():
            key = (event.request_id, event.index)
            assert key not in reasons, "an event after the terminal one"
            tokens.setdefault(key, []).extend(event.token_ids)
            if event.finish_reason is not None:
                reasons[key] = event.finish_reason
        if not arrivals and not engine.has_work:
            stats = engine.stats()
            assert stats.blocks_free == stats.blocks_total
            return tokens, reasons
    raise AssertionError("the engine did not come to an end")


@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("blocks", [400, 40])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_every_request_gets_its_own_tokens_whatever_the_pressure(order, blocks, caching, seed):
    requests = list(workload(seed))
    engine = make(order, caching=caching, blocks=blocks)
    tokens, reasons = drain(engine, requests)
    for r in requests:
        assert tokens[r.request_id, 0] == expected(r.prompt_token_ids, r.params.max_tokens)
        assert reasons[r.request_id, 0] == "length"
    if blocks == 40:
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("seed", range(6))
def test_cancelled_requests_return_every_block_and_end_once(order, seed):
    rng = random.Random(seed)
    requests = list(workload(seed))

    def cancel(turn, engine):
        if rng.random() < 0.3:
            engine.cancel(f"r{rng.randrange(24)}")

    _, reasons = drain(make(order, blocks=60), requests, cancel)
    assert len(reasons) == len(requests)


@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("seed", range(4))
def test_a_failed_step_fails_its_rows_only(order, seed):
    requests = list(workload(seed))
    tokens, reasons = drain(make(order, fault_rate=0.03), requests)
    assert set(reasons.values()) <= {"length", "error"}
    for r in requests:
        if reasons[r.request_id, 0] == "length":
            assert tokens[r.request_id, 0] == expected(r.prompt_token_ids, r.params.max_tokens)


def test_a_prefix_is_computed_once():
    engine = make()
    prompt = list(range(40))
    drain(engine, [request("a", prompt)])
    drain(engine, [request("b", [*prompt, 1, 2])])
    assert engine.stats().prefix_hits == 40


def test_another_salt_shares_nothing():
    engine = make()
    drain(engine, [request("a", list(range(40)))])
    other = request("b", list(range(40)))
    other.cache_salt = "tenant"
    drain(engine, [other])
    assert engine.stats().prefix_hits == 0


@pytest.mark.parametrize("order", ["plain", "overlapped"])
def test_n_sequences_share_the_prompt_and_end_each(order):
    engine = make(order)
    prompt = list(range(33))
    tokens, reasons = drain(engine, [request("a", prompt, n=3, temperature=1.0)])
    assert set(reasons) == {("a", 0), ("a", 1), ("a", 2)}
    assert len({tuple(t) for t in tokens.values()}) == 3
    assert engine.stats().prefix_hits == 2 * 32


@pytest.mark.parametrize("length", [1, 3, 4, 5, 31, 32, 33, 94, 95])
def test_every_length_up_to_the_limit_is_served_to_the_limit(length):
    r = request("a", list(range(length)), max_tokens=None, ignore_eos=True)
    tokens, reasons = drain(make(), [r])
    assert len(tokens["a", 0]) == 96 - length
    assert reasons["a", 0] == "length"


def test_what_cannot_fit_is_refused_with_both_numbers():
    engine = make()
    with pytest.raises(RequestError, match="96 tokens; at most 95"):
        engine.admit(request("a", list(range(96))))
    with pytest.raises(RequestError, match="empty"):
        engine.admit(request("a", []))
    with pytest.raises(RequestError, match="KV blocks"):
        make(blocks=5).admit(request("a", list(range(30))))


def test_a_full_queue_answers_with_capacity_error():
    engine = make()
    for i in range(engine.config.requests_waiting_max):
        engine.admit(request(f"r{i}", [1]))
    with pytest.raises(CapacityError):
        engine.admit(request("more", [1]))


@pytest.mark.parametrize("order", ["plain", "overlapped"])
def test_prompt_logprobs_cover_the_prompt(order):
    engine = make(order)
    prompt = list(range(40))
    engine.admit(request("a", prompt, prompt_logprobs=1, max_tokens=0))
    events = []
    while engine.has_work:
        events += engine.turn()
    (event,) = events
    assert event.finish_reason == "length"
    assert event.prompt_logprobs[0] is None
    assert [entry.token_id for entry in event.prompt_logprobs[1:]] == prompt[1:]


def test_end_tokens_end_unless_ignored():
    first = expected([5, 6, 7], 3)
    for ignore, reason in ((False, "stop"), (True, "length")):
        r = request("a", [5, 6, 7], ignore_eos=ignore, max_tokens=3)
        r.end_token_ids = [first[1]]
        tokens, reasons = drain(make(), [r])
        assert reasons["a", 0] == reason
        assert tokens["a", 0] == (first if ignore else first[:2])
