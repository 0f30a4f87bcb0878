"""Prefill and decode programs behind LLM: the tokens of the ragged ones, in both KV layouts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ranvier import LLM, SamplingParams
from ranvier.cli.options.settings import kv_layout, parse_options
from ranvier.core.errors import ConfigError, TargetError

PROMPTS = [{"prompt_token_ids": [3 + (7 * i) % 150 for i in range(n)]} for n in (1, 5, 33, 40, 90)]


@pytest.fixture(scope="module", params=["block", "contiguous"])
def unragged(request, tiny_options):
    return LLM(**tiny_options, program_family="unragged", kv_layout=request.param)


def run(llm, prompts=PROMPTS, **params):
    params = SamplingParams(**{"max_tokens": 20, "ignore_eos": True, **params})
    outs = llm.generate(prompts, params, use_tqdm=False)
    return [o.outputs[0].token_ids for o in outs]


@pytest.mark.parametrize(
    "params",
    [{"temperature": 0}, {"temperature": 0.8, "seed": 3, "top_k": 20, "top_p": 0.9},
     {"temperature": 0, "presence_penalty": 1.0, "logit_bias": {9: 2.0}}],
    ids=["greedy", "drawn", "edited"],
)  # fmt: skip
def test_tokens_equal_the_ragged_programs(llm, unragged, params):
    assert run(unragged, **params) == run(llm, **params)


def test_prompt_logprobs_equal_the_ragged_programs(llm, unragged):
    values = []
    for each in (llm, unragged):
        params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
        (out,) = each.generate(PROMPTS[2], params, use_tqdm=False)
        scored = zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:], strict=True)
        values.append([entry[token].logprob for token, entry in scored])
    assert np.abs(np.subtract(*values)).max() < 1e-4


def test_a_prefix_is_reused_in_blocks_and_not_in_regions(unragged, capfd):
    layout = unragged._engine.runner.info.kv_layout
    prompt = {"prompt_token_ids": [60 + i % 90 for i in range(70)]}
    params = SamplingParams(temperature=0, max_tokens=4)
    first, second = (unragged.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert second.num_cached_tokens == (64 if layout == "block" else 0)


def test_the_contiguous_layout_says_that_prefix_caching_is_off(tiny_options, capfd):
    LLM(**tiny_options, kv_layout="contiguous")
    assert "prefix caching is off" in capfd.readouterr().err


def test_nothing_is_traced_or_compiled_after_ready(unragged):
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **__: events.append(name))
    run(unragged, presence_penalty=0.5, logprobs=3, seed=1)
    assert [e for e in events if "compile" in e or "trace" in e or "lower" in e] == []


def test_the_overlapped_loop_gives_the_same_tokens(unragged):
    from dataclasses import replace

    plain = run(unragged, temperature=0.9, seed=5)
    engine = unragged._engine
    engine.config = replace(engine.config, order="overlapped")
    try:
        assert run(unragged, temperature=0.9, seed=5) == plain
    finally:
        engine.config = replace(engine.config, order="plain")


def test_the_framework_variable_chooses_the_layout(monkeypatch):
    for value, layout in (("neuronx-distributed-inference", "block"),
                          ("transformers-neuronx", "contiguous"), ("", "block")):  # fmt: skip
        monkeypatch.setenv("VLLM_NEURON_FRAMEWORK", value)
        assert kv_layout(parse_options({"model": "m"})) == layout
        assert kv_layout(parse_options({"model": "m", "kv_layout": "block"})) == "block"
    monkeypatch.setenv("VLLM_NEURON_FRAMEWORK", "transformer-neuronx")
    with pytest.raises(ConfigError, match="Did you mean transformers-neuronx"):
        parse_options({"model": "m"})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kv_layout": "contiguous", "program_family": "ragged"}, ConfigError, "no contiguous"),
        ({"kv_layout": "paged"}, ConfigError, "supported: auto, block, contiguous"),
        ({"program_family": "mixed"}, ConfigError, "supported: auto, ragged, unragged"),
        ({"device": "tpu"}, ConfigError, "supported: auto, cpu, cuda, neuron"),
        ({"target": "neuron-trn"}, TargetError, "Did you mean neuron-trn"),
        ({"target": "neuron-trn2", "device": "cpu"}, ConfigError, "no target of --device cpu"),
        ({"device": "neuron"}, TargetError, "No Neuron device"),
        ({"device": "cuda"}, TargetError, "no cuda device"),
    ],
)
def test_wrong_choices_are_named(tiny_options, options, error, match):
    with pytest.raises(error, match=match):
        LLM(**tiny_options, **options)
