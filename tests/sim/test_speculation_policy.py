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


class Device:
    """An engine on a device of a clock of its own; `programs` are those that ran."""

    def __init__(self, skill, rows, costs, choose=None, *, has_drafter=True):
        guesses = {"drafts": COUNTS, "lookahead": COUNTS[-1], "has_drafter": True}
        config = SpeculationConfig(method="draft_model") if has_drafter else None
        info = RunnerInfo(
            buckets=BucketSet(tokens=(1, 8, 32, 256), **(guesses if has_drafter else {})),
            rows_max=rows, block_tokens=16, block_count=32 * rows, model_len_max=512, vocab_size=64,
            logprobs_max=4, edits_max=64,
        )  # fmt: skip
        self.clock, self.programs, self._costs = Clock(), [], costs
        runner = SimulatedRunner(info)
        runner.skill, runner.on_step = skill, self._step
        self.engine = Engine(
            runner, EngineConfig(max_num_batched_tokens=256, speculation=config), self.clock
        )
        if choose is not None:
            self.engine.scheduler.speculation.policy.choose = choose
        self._count = 0

    def _step(self, plan):
        costs = self._costs
        ms = costs["base"] + costs["slope"] * (plan.token_count - 1)
        ms += costs["draft"] * plan.program.draft
        ms += costs.get("taken in", 0.0) * plan.token_count * (plan.program.lookahead > 0)
        self.clock.s += 1e-3 * ms
        self.programs.append(plan.program)

    def run(self, rows, prompt=2, tokens=TOKENS):
        """Seconds of the device, and tokens that it made, for `rows` requests at once."""
        start_s, count = self.clock.s, 0
        self.programs.clear()
        for i in range(rows):
            params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
            ids = [(self._count + i) % 64] + [(7 * j) % 61 for j in range(prompt - 1)]
            self.engine.admit(
                Request(
                    request_id=str(self._count + i), prompt_token_ids=ids, params=params, seed=i
                )
            )
        self._count += rows
        while self.engine.has_work:
            count += sum(len(event.token_ids) for event in self.engine.turn())
        return self.clock.s - start_s, count


def run(skill, rows, costs, choose=None):
    return Device(skill, rows, costs, choose).run(rows)


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


def test_prompts_of_a_crowd_that_guesses_nothing_do_not_pay_for_the_drafter():
    """A draft model takes prompts in at a third of the target's cost; few rows guess again."""
    costs = {"base": 5.0, "slope": 0.5, "draft": 1.0, "taken in": 0.17}
    off, on = Device(0.6, 32, costs, has_drafter=False), Device(0.6, 32, costs)
    crowd = {"rows": 32, "prompt": 128, "tokens": 128}
    for device in (off, on):
        device.run(**crowd)
    plain, learnt = off.run(**crowd), on.run(**crowd)
    assert plain[1] == learnt[1] and plain[0] / learnt[0] >= 0.97
    large = [program for program in on.programs if program.tokens == 256]
    assert large and sum(program.lookahead > 0 for program in large) <= 0.1 * len(large)
    alone, fast = off.run(1), on.run(1)
    assert alone[1] == fast[1] and alone[0] / fast[0] >= 1.1
