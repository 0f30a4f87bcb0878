"""One storm: a whole engine under pressure, faults and cancellations, all drawn from one seed.

By hand: python -m tests.sim.storm SEED [SEED ...]
"""

from __future__ import annotations

import dataclasses
import random
import sys
from dataclasses import dataclass, field

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig, Method, SpeculationConfig
from ranvier.core.random import derive_seed, uniform
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.sim.checker import check_scheduler
from ranvier.sim.runner import SimulatedRunner, next_token

__all__ = ["Outcome", "Scenario", "run"]

VOCAB = 997
LENGTH_MAX = 96
TURNS_MAX = 20_000
RAGGED = BucketSet(tokens=(1, 8, 32))
UNRAGGED = BucketSet(prefill_tokens=(8, 32), decode_rows=(1, 4, 8), contexts=(16, 48, 96))
DRAFTS = 3
Key = tuple[str, int]


@dataclass(frozen=True)
class Scenario:
    """What the weather is. Rates are shares of steps (faults) or of turns (cancellations)."""

    seed: int
    order: str = "plain"
    requests: int = 30
    blocks: int = 40
    caching: bool = True
    fault_rate: float = 0.0
    late_fault_rate: float = 0.0
    loss_rate: float = 0.0
    cancel_rate: float = 0.0
    is_ragged: bool = True
    method: Method | None = None
    """How tokens are guessed."""

    @property
    def vocab(self) -> int:
        """Few tokens, where guesses from the history are to stand now and then."""
        return 3 if self.method == "ngram" else VOCAB

    @property
    def buckets(self) -> BucketSet:
        own = RAGGED if self.is_ragged else UNRAGGED
        if self.method is None:
            return own
        has_drafter = self.method != "ngram"
        counts = (1, DRAFTS) if has_drafter or not self.is_ragged else ()
        return dataclasses.replace(own, drafts=counts, lookahead=DRAFTS, has_drafter=has_drafter)

    @property
    def command(self) -> str:
        return f"python -m tests.sim.storm {self.seed}"


@dataclass
class Outcome:
    """Tokens and finish reasons, by (request, index)."""

    tokens: dict[Key, list[int]] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)
    scored: dict[str, list[int]] = field(default_factory=dict)
    """Prompt tokens that were scored, by request."""
    preemptions: int = 0
    accepted: int = 0


class Weather:
    """A clock that goes on by chance, from a seed: what a policy measures is never the same."""

    def __init__(self, seed: int) -> None:
        self._now_s, self._random = 0.0, random.Random(seed)

    def now_s(self) -> float:
        self._now_s += self._random.random() * 1e-3
        return self._now_s


def scenarios(seed: int) -> list[Scenario]:
    """Every weather of one seed, in both orders of the loop."""
    rng = random.Random(seed)
    blocks, caching = rng.choice([26, 30, 40, 80]), rng.random() < 0.7
    kinds = (
        {},
        {"cancel_rate": 0.4},
        {"fault_rate": 0.05},
        {"late_fault_rate": 0.05},
        {"loss_rate": 0.03, "cancel_rate": 0.1},
        {"fault_rate": 0.03, "late_fault_rate": 0.03, "cancel_rate": 0.2},
    )
    return [
        Scenario(seed, order, blocks=blocks, caching=caching, is_ragged=is_ragged, **kind)
        for kind in kinds
        for order in ("plain", "overlapped")
        for is_ragged in (True, False)
    ]


def workload(scenario: Scenario) -> list[Request]:
    """Prompts that share heads, of every length, greedy and drawn, some with n > 1."""
    rng = random.Random(scenario.seed)
    shared = [rng.randrange(scenario.vocab) for _ in range(24)]
    found = []
    for i in range(scenario.requests):
        own = [rng.randrange(scenario.vocab) for _ in range(rng.randint(1, 50))]
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            max_tokens=rng.randint(1, 20),
            n=rng.choice([1, 1, 1, 2, 3]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
        )
        found.append(
            Request(
                request_id=f"r{i}",
                prompt_token_ids=shared[: rng.choice([0, 8, 24])] + own,
                params=params,
                seed=rng.randrange(2**31),
                priority=rng.choice([0, 0, 0, 1]),
                cache_salt=rng.choice(["", "", "tenant"]),
            )
        )
    return found


def expected(request: Request, index: int, vocab: int = VOCAB) -> list[int]:
    """What the simulated model says of the request, alone."""
    params, tokens = request.params, list(request.prompt_token_ids)
    seed = derive_seed(request.seed, index)
    for _ in range(params.max_tokens or 0):
        draw = 0.0 if params.is_greedy else uniform(seed, len(tokens))
        tokens.append(next_token(tokens, draw, vocab))
    return tokens[len(request.prompt_token_ids) :]


def run(scenario: Scenario) -> Outcome:
    """Run a scenario to its end and check everything; AssertionError names the command."""
    try:
        return _run(scenario)
    except AssertionError as error:
        raise AssertionError(f"{scenario}\nagain: {scenario.command}\n{error}") from error


def _run(scenario: Scenario) -> Outcome:
    engine, requests = _engine(scenario), workload(scenario)
    rng, arrivals, outcome = random.Random(scenario.seed + 1), list(requests), Outcome()
    for _ in range(TURNS_MAX):
        while arrivals and rng.random() < 0.4:
            engine.admit(arrivals.pop(0))
        if rng.random() < scenario.cancel_rate:
            index = rng.choice([None, None, 0, 1])
            engine.cancel(f"r{rng.randrange(scenario.requests)}", index)
        _take(engine, outcome)
        check_scheduler(engine.scheduler)
        if not arrivals and not engine.has_work:
            break
    else:
        raise AssertionError("the engine did not come to an end")
    outcome.preemptions = engine.stats().preemptions
    outcome.accepted = engine.stats().accepted_tokens
    _check(scenario, engine, requests, outcome)
    return outcome


def _engine(scenario: Scenario) -> Engine:
    info = RunnerInfo(
        buckets=scenario.buckets, rows_max=8, block_tokens=4,
        block_count=scenario.blocks,
        model_len_max=LENGTH_MAX, vocab_size=scenario.vocab, logprobs_max=4, edits_max=64,
    )  # fmt: skip
    runner = SimulatedRunner(
        info,
        fault_rate=scenario.fault_rate,
        late_fault_rate=scenario.late_fault_rate,
        loss_rate=scenario.loss_rate,
        seed=scenario.seed,
    )
    config = EngineConfig(
        max_num_batched_tokens=32, enable_prefix_caching=scenario.caching, order=scenario.order,
        speculation=SpeculationConfig(method=scenario.method) if scenario.method else None,
    )  # fmt: skip
    return Engine(runner, config, Weather(scenario.seed))


def _take(engine: Engine, outcome: Outcome) -> None:
    for event in engine.turn():
        key = (event.request_id, event.index)
        assert key not in outcome.reasons, f"{key}: an event after the terminal one"
        outcome.tokens.setdefault(key, []).extend(event.token_ids)
        if event.prompt_logprobs is not None:
            outcome.scored[event.request_id] = [
                entry.token_id for entry in event.prompt_logprobs if entry is not None
            ]
        if event.finish_reason is not None:
            outcome.reasons[key] = event.finish_reason


def _check(scenario: Scenario, engine: Engine, requests: list[Request], outcome: Outcome) -> None:
    keys = {(r.request_id, i) for r in requests for i in range(r.params.n)}
    assert set(outcome.reasons) == keys, f"no end: {sorted(keys - set(outcome.reasons))}"
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    allowed = {"length"}
    allowed |= {"abort"} if scenario.cancel_rate else set()
    allowed |= (
        {"error"} if scenario.fault_rate + scenario.late_fault_rate + scenario.loss_rate else set()
    )
    assert set(outcome.reasons.values()) <= allowed
    for request in requests:
        for index in range(request.params.n):
            key, want = (request.request_id, index), expected(request, index, scenario.vocab)
            got = outcome.tokens[key]
            assert got == want[: len(got)], f"{key}: {got}, not {want}"
            if outcome.reasons[key] == "length":
                assert len(got) == len(want), f"{key} ended early"
        is_scored = request.params.prompt_logprobs is not None
        if is_scored and outcome.reasons[request.request_id, 0] == "length":
            scored = outcome.scored[request.request_id]
            assert scored == request.prompt_token_ids[1:], f"{request.request_id}: {scored}"


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        for one in scenarios(number):
            end = run(one)
            print(one, f"preemptions {end.preemptions}, ends {len(end.reasons)}: whole")
