"""The same engine over prefill and decode programs: both KV layouts, under pressure and faults."""

from __future__ import annotations

import random

import pytest

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.sim.runner import SimulatedRunner
from tests.sim.test_engine import VOCAB, drain, expected, request, workload

BUCKETS = BucketSet(prefill_tokens=(8, 32), decode_rows=(1, 4, 8), contexts=(16, 48, 96))
ORDERS = pytest.mark.parametrize("order", ["plain", "overlapped"])


def make(layout="block", order="plain", blocks=400, fault_rate=0.0, caching=True):
    is_block = layout == "block"
    info = RunnerInfo(
        buckets=BUCKETS, rows_max=8, block_tokens=4 if is_block else 96,
        block_count=blocks if is_block else 9, model_len_max=96, vocab_size=VOCAB,
        logprobs_max=4, edits_max=64, kv_layout=layout,
    )  # fmt: skip
    config = EngineConfig(
        max_num_batched_tokens=32, enable_prefix_caching=caching and is_block, order=order
    )
    return Engine(SimulatedRunner(info, fault_rate=fault_rate), config)


@ORDERS
@pytest.mark.parametrize(("layout", "blocks"), [("block", 400), ("block", 40), ("contiguous", 0)])
@pytest.mark.parametrize("seed", range(5))
def test_every_request_gets_its_own_tokens(order, layout, blocks, seed):
    requests = list(workload(seed))
    engine = make(layout, order, blocks)
    tokens, reasons = drain(engine, requests)
    for r in requests:
        assert tokens[r.request_id, 0] == expected(r.prompt_token_ids, r.params.max_tokens)
        assert reasons[r.request_id, 0] == "length"
    if blocks == 40:
        assert engine.stats().preemptions > 0
    if layout == "contiguous":
        assert engine.stats().preemptions == 0


@ORDERS
@pytest.mark.parametrize("layout", ["block", "contiguous"])
@pytest.mark.parametrize("seed", range(4))
def test_cancels_and_faults_end_every_request_once(order, layout, seed):
    rng = random.Random(seed)
    requests = list(workload(seed))

    def cancel(turn, engine):
        if rng.random() < 0.2:
            engine.cancel(f"r{rng.randrange(24)}")

    tokens, reasons = drain(make(layout, order, 60, fault_rate=0.02), requests, cancel)
    assert len(reasons) == len(requests)
    for r in requests:
        if reasons[r.request_id, 0] == "length":
            assert tokens[r.request_id, 0] == expected(r.prompt_token_ids, r.params.max_tokens)


@ORDERS
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 48, 94, 95])
def test_every_length_is_served_to_the_limit(order, length):
    r = request("a", list(range(length)), max_tokens=None, ignore_eos=True)
    tokens, reasons = drain(make(order=order), [r])
    assert tokens["a", 0] == expected(r.prompt_token_ids, 96 - length)
    assert reasons["a", 0] == "length"


def test_prefill_and_decode_take_turns_and_each_step_has_the_smallest_program():
    engine, names = make(), []
    engine.runner.on_step = lambda plan: names.append(plan.program.name)
    engine.admit(request("a", list(range(40)), max_tokens=5))
    engine.turn()
    engine.turn()
    engine.admit(request("b", list(range(3)), max_tokens=2))
    while engine.has_work:
        engine.turn()
    assert names == [
        "prefill.t32.c48", "prefill.t8.c48", "decode.r1.c48", "prefill.t8.c16",
        "decode.r4.c48", "decode.r1.c48", "decode.r1.c48",
    ]  # fmt: skip


def test_a_long_queue_of_prompts_does_not_starve_decode():
    engine, families = make(), []
    engine.runner.on_step = lambda plan: families.append(plan.program.family)
    engine.admit(request("first", [1, 2], max_tokens=20))
    for i in range(6):
        engine.admit(request(f"r{i}", list(range(30)), max_tokens=1))
    while engine.has_work:
        engine.turn()
    assert "prefill prefill" not in " ".join(families)


@ORDERS
@pytest.mark.parametrize("layout", ["block", "contiguous"])
def test_prompts_are_scored_and_prefixes_reused_only_in_blocks(order, layout):
    engine, prompt = make(layout, order), list(range(40))
    engine.admit(request("a", prompt, prompt_logprobs=1, max_tokens=3))
    events = []
    while engine.has_work:
        events += engine.turn()
    scored = events[0].prompt_logprobs
    assert [entry.token_id for entry in scored[1:]] == prompt[1:]
    assert [t for e in events for t in e.token_ids] == expected(prompt, 3)
    drain(engine, [request("b", [*prompt, 1, 2])])
    assert engine.stats().prefix_hits == (40 if layout == "block" else 0)


@ORDERS
def test_a_prompt_whose_scores_were_cut_by_preemption_is_scored_once(order):
    engine = make(order=order, blocks=26)
    scored = [request(f"s{i}", list(range(i, i + 40)), prompt_logprobs=0, max_tokens=4)
              for i in range(2)]  # fmt: skip
    for r in [*scored, request("c", list(range(50)), max_tokens=30)]:
        engine.admit(r)
    events = []
    while engine.has_work:
        events += engine.turn()
    assert engine.stats().preemptions > 0
    for r in scored:
        first = next(e for e in events if e.request_id == r.request_id)
        ids = [entry.token_id for entry in first.prompt_logprobs[1:]]
        assert ids == r.prompt_token_ids[1:]
