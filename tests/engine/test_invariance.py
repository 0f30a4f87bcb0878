"""A request's tokens and log-probabilities are the same bits, whatever runs beside it.

Alone, in a full mixed batch, cut into other chunks, after preemption and with a prefix hit: the CPU
kernels sum in one order, so nothing may change, in bf16 and in f32.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import open_engine
from ranvier.core.config import EngineConfig
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.engine.loop import Engine
from ranvier.native import library

REAL = [pytest.mark.real, pytest.mark.timeout(600)]
MODELS = ["tiny", pytest.param("smollm2-135m", marks=REAL)]
PROMPT_TOKENS = 75
NEW_TOKENS = 20
TURNS_MAX = 2000


class NarrowRunner:
    """The same device with fewer blocks, so that sequences get in each other's way."""

    def __init__(self, runner, block_count):
        self.info = dataclasses.replace(runner.info, block_count=block_count)
        self.dispatch, self.collect = runner.dispatch, runner.collect


@pytest.fixture(scope="module", params=MODELS)
def model(request, tiny_options, tmp_path_factory):
    if not library.register():
        pytest.skip("the kernels are not built")
    return {**tiny_options, "model": request.param} if request.param != "tiny" else tiny_options


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request, model):
    engine, _ = open_engine(parse_options({**model, "dtype": request.param}), [])
    yield engine.runner
    engine.runner.close()


def engine_of(runner, *, batched=32, caching=False):
    config = EngineConfig(max_num_batched_tokens=batched, enable_prefix_caching=caching)
    return Engine(runner, config)


def ids(seed, count):
    return random.Random(seed).choices(range(3, 160), k=count)


def ask(name, prompt, **params):
    params = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, **params}
    return Request(
        request_id=name, prompt_token_ids=prompt, params=SamplingParams(**params), seed=5
    )


def probe(**params):
    """The request under test; sampled, so that the draw is tested too."""
    params = {"logprobs": 5, "temperature": 1.0, **params}
    return ask("probe", ids(1, PROMPT_TOKENS), **params)


def run(engine, requests):
    """Run to the end; (what the probe got, bit by bit, and how many tokens were cached)."""
    for request in requests:
        engine.admit(request)
    got, cached = [], 0
    for _ in range(TURNS_MAX):
        for event in engine.turn():
            if event.request_id != "probe":
                continue
            assert event.error is None
            cached = max(cached, event.cached_tokens)
            got += event.prompt_logprobs or []
            got += event.logprobs or []
        if not engine.has_work:
            return got, cached
    raise AssertionError("the engine did not come to an end")


def mates():
    """Batch mates of every kind: long, short, sampled, scored."""
    return [
        ask("a", ids(2, 90), max_tokens=30, temperature=1.3, top_k=9),
        ask("b", ids(3, 3), max_tokens=60),
        ask("c", ids(4, 40), max_tokens=25, prompt_logprobs=1),
    ]


@pytest.fixture(scope="module")
def alone(runner):
    got, _ = run(engine_of(runner), [probe()])
    assert len(got) == NEW_TOKENS
    return got


def test_a_full_mixed_batch_changes_nothing(runner, alone):
    a, b, c = mates()
    assert run(engine_of(runner), [a, probe(), b, c])[0] == alone


@pytest.mark.parametrize("batched", [1, 7, 16, 31])
def test_other_chunks_change_nothing(runner, alone, batched):
    assert run(engine_of(runner, batched=batched), [probe()])[0] == alone


def test_preemption_changes_nothing(runner, alone):
    size = runner.info.block_tokens
    needed = -(-(PROMPT_TOKENS + NEW_TOKENS) // size)
    rival = ask("rival", ids(6, 33), max_tokens=60)
    engine = engine_of(NarrowRunner(runner, 1 + needed + 1))
    got, _ = run(engine, [rival, probe()])
    assert engine.stats().preemptions > 0
    assert got == alone


def test_a_prefix_hit_changes_nothing(runner, alone):
    engine = engine_of(runner, caching=True)
    run(engine, [ask("first", ids(1, PROMPT_TOKENS), max_tokens=1)])
    got, cached = run(engine, [probe()])
    assert cached >= runner.info.block_tokens
    assert got == alone


def test_prompt_logprobs_do_not_depend_on_the_batch(runner):
    whole = run(engine_of(runner), [probe(prompt_logprobs=3)])[0]
    a, b, c = mates()
    assert run(engine_of(runner, batched=13), [a, b, probe(prompt_logprobs=3), c])[0] == whole
