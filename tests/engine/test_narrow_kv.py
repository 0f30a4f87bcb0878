"""--kv-cache-dtype end to end: near the whole cache, bit-equal in any company, half the bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.engine.test_invariance import NarrowRunner, ask, engine_of, ids, mates, probe, run
from tests.numerics.isa import NEEDS_KERNELS

from ranvier import LLM, SamplingParams
from ranvier.artifact.read import read_manifest
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, open_engine
from ranvier.core.errors import ConfigError
from ranvier.native import library

FARTHEST = {"fp8": 0.15, "int8": 0.05}
"""How far a narrow cache moves log-probabilities of the tiny random model."""
PROMPTS = [[7, 11, 5, 80, 33, 9], list(range(10, 100))]


@pytest.fixture(scope="module", params=FARTHEST)
def options(request, tiny_options):
    return {**tiny_options, "dtype": "bfloat16", "kv_cache_dtype": request.param}


def scores(options):
    """Log-probabilities of the prompts' own tokens."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    with LLM(**options) as llm:
        outs = llm.generate(prompts, params, use_tqdm=False)
    found = []
    for prompt, out in zip(PROMPTS, outs, strict=True):
        entries = zip(prompt[1:], out.prompt_logprobs[1:], strict=True)
        found += [entry[token].logprob for token, entry in entries]
    return np.array(found)


def test_model_stays_near_the_whole_cache(options, tiny_options):
    whole = scores({**tiny_options, "dtype": "bfloat16"})
    moved = np.abs(scores(options) - whole)
    assert 0 < moved.max() < FARTHEST[options["kv_cache_dtype"]]


@NEEDS_KERNELS
def test_batch_chunks_prefix_and_preemption_change_no_bit(options):
    engine, _ = open_engine(parse_options(options), [])
    runner = engine.runner
    alone, _ = run(engine_of(runner), [probe()])
    assert run(engine_of(runner), [*mates(), probe()])[0] == alone
    assert run(engine_of(runner, batched=7), [probe()])[0] == alone
    cached = engine_of(runner, caching=True)
    assert run(cached, [probe()])[0] == alone
    again, hits = run(cached, [probe()])
    assert again == alone and hits > 0
    tight = engine_of(NarrowRunner(runner, 5))
    rival = ask("rival", ids(6, 33), max_tokens=60)
    assert run(tight, [rival, probe()])[0] == alone
    assert tight.stats().preemptions > 0
    runner.close()


def test_artifacts_differ_and_hold_narrow_caches(options, tiny_options):
    kind = options["kv_cache_dtype"]
    narrow = read_manifest(ensure_artifact(parse_options(options)))
    whole = read_manifest(ensure_artifact(parse_options({**options, "kv_cache_dtype": "auto"})))
    same = read_manifest(ensure_artifact(parse_options({**options, "kv_cache_dtype": "bfloat16"})))
    assert same.key == whole.key != narrow.key
    assert (narrow.key.kv_cache_dtype, whole.key.kv_cache_dtype) == (kind, "auto")
    assert narrow.model["state"]["k"][1] == {"fp8": "float8_e4m3fn", "int8": "int8"}[kind]


def test_plain_kernels_serve_it_too(options, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "register", lambda: False)
    wide = scores({**options, "artifacts": str(tmp_path), "kv_cache_dtype": "auto"})
    moved = np.abs(scores({**options, "artifacts": str(tmp_path)}) - wide)
    assert 0 < moved.max() < FARTHEST[options["kv_cache_dtype"]]
    keys = [json.loads(p.read_text())["key"] for p in tmp_path.glob("*/manifest.json")]
    assert {key["kernels"] for key in keys} == {"reference"}


def test_bytes_of_the_cache_buy_more_blocks(options):
    counts = {}
    for kind in ("auto", options["kv_cache_dtype"]):
        asked = {**options, "kv_cache_dtype": kind, "kv_cache_memory_bytes": 2**17}
        manifest = read_manifest(ensure_artifact(parse_options(asked)))
        counts[kind] = manifest.key.block_count
    assert counts[options["kv_cache_dtype"]] >= 1.5 * counts["auto"]


def test_neurons_name_of_it(options, tiny_options):
    if options["kv_cache_dtype"] != "fp8":
        pytest.skip("NxD Inference casts to fp8")
    given = {**tiny_options, "dtype": "bfloat16"}
    named = parse_options({**given, "override_neuron_config": {"kv_cache_quant": True}})
    assert named.kv_cache_dtype == "fp8"
    assert ensure_artifact(named) == ensure_artifact(parse_options(options))


def test_wrong_names_are_refused(tiny_options):
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp9'; supported: auto.*int8"):
        parse_options({**tiny_options, "kv_cache_dtype": "fp9"})
    wrong = parse_options({**tiny_options, "kv_cache_dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="kv_cache_dtype=bfloat16 with dtype float32"):
        ensure_artifact(wrong)


def test_another_name_of_fp8(tiny_options):
    given = {**tiny_options, "dtype": "bfloat16"}
    one = ensure_artifact(parse_options({**given, "kv_cache_dtype": "fp8"}))
    assert ensure_artifact(parse_options({**given, "kv_cache_dtype": "fp8_e4m3"})) == one
