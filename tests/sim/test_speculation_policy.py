"""The policy in the whole engine, on a device whose steps cost what a formula says.

Time is the device's: what guessing gains or loses is exact, and the same at every run.
"""

from __future__ import annotations

import pytest

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig, SpeculationConfig
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.sim.runner import SimulatedRunner

TOKENS = 240
COUNTS = (1, 2, 4)
HEAD = {"base": 5.9, "slope": 0.73, "draft": 0.83}
"""Milliseconds of a step, of a token more, of a draft: SmolLM2 with a trained head, zen4-2."""
DEAR = {"base": 29.0, "slope": 0.9, "draft": 12.0}


class Clock:
    def __init__(self):
        self.s = 0.0

    def now_s(self):
        return self.s


def run(skill, rows, costs, choose=None):
    """Seconds of the device, and tokens that it made, for `rows` requests at once."""
    info = RunnerInfo(
        buckets=BucketSet(
            tokens=(1, 8, 32, 256), drafts=COUNTS, lookahead=COUNTS[-1], has_drafter=True
        ),
        rows_max=rows, block_tokens=16, block_count=32 * rows, model_len_max=512, vocab_size=64,
        logprobs_max=4, edits_max=64,
    )  # fmt: skip
    clock, runner = Clock(), SimulatedRunner(info)
    runner.skill = skill

    def step(plan):
        drafting = costs["draft"] * plan.program.draft
        clock.s += 1e-3 * (costs["base"] + costs["slope"] * (plan.token_count - 1) + drafting)

    runner.on_step = step
    config = EngineConfig(
        max_num_batched_tokens=256, speculation=SpeculationConfig(method="draft_model")
    )
    engine = Engine(runner, config, clock)
    if choose is not None:
        engine.scheduler.speculation.policy.choose = choose
    for i in range(rows):
        params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
        engine.admit(
            Request(request_id=str(i), prompt_token_ids=[i % 64, 3], params=params, seed=i)
        )
    count = 0
    while engine.has_work:
        count += sum(len(event.token_ids) for event in engine.turn())
    return clock.s, count


def fixed(count):
    return lambda rows, rooms: count if any(rooms) else 0


@pytest.mark.parametrize("skill", [0.1, 0.45, 0.7, 0.95])
def test_the_policy_is_near_the_best_fixed_count(skill):
    times = {count: run(skill, 1, HEAD, fixed(count)) for count in (0, *COUNTS)}
    assert {tokens for _, tokens in times.values()} == {TOKENS}
    best = min(seconds for seconds, _ in times.values())
    assert run(skill, 1, HEAD)[0] <= 1.08 * best


@pytest.mark.parametrize("rows", [1, 8, 32])
@pytest.mark.parametrize("costs", [HEAD, DEAR], ids=["head", "dear"])
def test_bad_guesses_lose_at_most_three_per_cent(rows, costs):
    off, tokens = run(0.02, rows, costs, fixed(0))
    on, same = run(0.02, rows, costs)
    assert tokens == same == rows * TOKENS
    assert off / on >= 0.97


def test_good_guesses_win_alone_and_are_left_in_a_crowd():
    for rows, ratio in ((1, 1.6), (32, 0.97)):
        off, _ = run(0.9, rows, DEAR | {"draft": 1.0}, fixed(0))
        on, _ = run(0.9, rows, DEAR | {"draft": 1.0})
        assert off / on >= ratio, rows
