"""Scheduler and simulated device under any order of add, plan, commit, fail and cancel."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.random import uniform
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.schedule.scheduler import Scheduler
from ranvier.schedule.sequence import Sequence
from ranvier.sim.checker import check_scheduler
from ranvier.sim.runner import SimulatedRunner, next_token

VOCAB = 13
LENGTH_MAX = 24
FLIGHTS_MAX = 2
RAGGED = BucketSet(tokens=(1, 4, 8))
UNRAGGED = BucketSet(prefill_tokens=(4, 8), decode_rows=(1, 3), contexts=(8, 24))
PARAMS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(0, 8),
        "temperature": st.sampled_from([0.0, 1.0]),
        "prompt_logprobs": st.sampled_from([None, None, 0]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """Commits in order of launch, at most two launches in flight, as the engine does."""

    @initialize(
        blocks=st.integers(8, 14), batched=st.integers(3, 8), caching=st.booleans(),
        buckets=st.sampled_from([RAGGED, UNRAGGED]),
    )  # fmt: skip
    def begin(self, blocks, batched, caching, buckets):
        info = RunnerInfo(
            buckets=buckets, rows_max=3, block_tokens=4, block_count=blocks,
            model_len_max=LENGTH_MAX, vocab_size=VOCAB, logprobs_max=1, edits_max=8,
        )  # fmt: skip
        config = EngineConfig(max_num_batched_tokens=batched, enable_prefix_caching=caching)
        self.scheduler, self.runner = Scheduler(info, config), SimulatedRunner(info)
        self.flying, self.live, self.reasons = [], [], {}

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=15),
        params=PARAMS,
        priority=st.integers(0, 1),
        seed=st.integers(0, 3),
    )
    def add(self, prompt, params, priority, seed):
        request = Request(
            request_id=str(len(self.reasons) + len(self.live)),
            prompt_token_ids=prompt,
            params=SamplingParams(**params),
            seed=seed,
            end_token_ids=[0],
            priority=priority,
        )
        self.scheduler.check(request)
        sequence = Sequence(request, 0, 0.0)
        self.live.append(sequence)
        self.scheduler.add(sequence)

    @precondition(lambda self: len(self.flying) < FLIGHTS_MAX)
    @rule(is_refused=st.sampled_from([False] * 5 + [True]))
    def plan(self, is_refused):
        launch = self.scheduler.plan()
        if launch is None:
            return
        if is_refused:
            self.take(self.scheduler.fail(launch, "refused"))
        else:
            self.flying.append((launch, self.runner.dispatch(launch.plan)))

    @precondition(lambda self: self.flying)
    @rule(is_lost=st.sampled_from([False] * 5 + [True]))
    def collect(self, is_lost):
        launch, handle = self.flying.pop(0)
        if is_lost:
            self.take(self.scheduler.fail(launch, "lost"))
        else:
            self.take(self.scheduler.commit(launch, self.runner.collect(handle)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        self.take([self.scheduler.drop(data.draw(st.sampled_from(self.live)), "abort")])

    @rule()
    def forget(self):
        self.scheduler.pool.forget_all()

    @invariant()
    def is_sound(self):
        if hasattr(self, "scheduler"):
            check_scheduler(self.scheduler, flying_max=FLIGHTS_MAX)

    def take(self, events):
        for event in events:
            if event.finish_reason is None:
                continue
            assert event.request_id not in self.reasons, "two terminal events"
            self.reasons[event.request_id] = event.finish_reason
            (sequence,) = [s for s in self.live if s.request.request_id == event.request_id]
            self.live.remove(sequence)
            check_tokens(sequence, event.finish_reason)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(500):
            if not self.live:
                break
            if len(self.flying) < FLIGHTS_MAX:
                self.plan(is_refused=False)
            if self.flying:
                self.collect(is_lost=False)
            check_scheduler(self.scheduler, flying_max=FLIGHTS_MAX)
        assert not self.live, "sequences that never end"
        assert self.scheduler.pool.free == self.scheduler.pool.total


def check_tokens(sequence, reason):
    """The sequence's tokens are those of a model that runs it alone, and it ended where it must."""
    request = sequence.request
    params, tokens = request.params, list(request.prompt_token_ids)
    got = sequence.tokens[len(tokens) :]
    for token in got:
        draw = 0.0 if params.is_greedy else uniform(request.seed, len(tokens))
        assert token == next_token(tokens, draw, VOCAB)
        tokens.append(token)
    if reason == "stop":
        assert got[-1] == 0 and 0 not in got[:-1]
    elif reason == "length":
        assert 0 not in got
        assert len(got) == min(params.max_tokens, LENGTH_MAX - sequence.prompt_count)
        if params.prompt_logprobs is not None:
            entries = sequence.prompt_logprobs
            assert [e.token_id for e in entries[1:]] == request.prompt_token_ids[1:]


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
