"""Neuron's names change a real engine as their own names do."""

from __future__ import annotations

import pytest

from ranvier import LLM, SamplingParams
from ranvier.artifact.read import read_manifest
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact

PROMPTS = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 7, 20, 60)]
SAME = {
    "seq_len": 128, "batch_size": 4, "max_context_length": 32, "pa-block-size": 32,
    "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(tiny_options):
    return {name: tiny_options[name] for name in ("model", "artifacts")}


def tokens(llm, params):
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_the_same_settings_by_other_names_are_the_same_artifact(llm, bare, tiny_options):
    own = ensure_artifact(parse_options(tiny_options))
    options = {**bare, "override_neuron_config": SAME, "require_artifacts": True}
    assert ensure_artifact(parse_options(options)) == own


def test_async_mode_gives_the_same_tokens(llm, bare):
    other = LLM(**bare, override_neuron_config={**SAME, "async_mode": True})
    assert other._engine.config.order == "overlapped"
    for edits in (
        {},
        {"temperature": 0.8, "seed": 5},
        {"presence_penalty": 1.5},
        {"repetition_penalty": 1.3, "temperature": 0.8, "seed": 5},
        {"min_tokens": 8, "stop_token_ids": list(range(3, 120))},
        {"logit_bias": {50: 3.0}, "temperature": 0.8, "seed": 5},
    ):
        params = SamplingParams(**{"temperature": 0, "max_tokens": 12, **edits})
        assert tokens(other, params) == tokens(llm, params), edits


def test_on_device_sampling_is_the_default_of_requests(llm, bare):
    section = {"do_sample": True, "temperature": 0.5, "top_k": 7}
    override = {**SAME, "on_device_sampling_config": section}
    found = LLM(**bare, override_neuron_config=override).get_default_sampling_params()
    assert (found.temperature, found.top_k) == (0.5, 7)
    override = {**SAME, "on_device_sampling_config": {"do_sample": False}}
    found = LLM(**bare, override_neuron_config=override).get_default_sampling_params()
    assert found.temperature == 0


def test_listed_buckets_are_the_programs(bare, monkeypatch):
    monkeypatch.setenv("NEURON_CONTEXT_LENGTH_BUCKETS", "16")
    override = {**SAME, "token_generation_batches": [2]}
    folder = ensure_artifact(parse_options({**bare, "override_neuron_config": override}))
    names = [program.name for program in read_manifest(folder).programs]
    assert names == ["step.t2", "step.t4", "step.t16", "step.t32"]
    override = {**SAME, "enable_bucketing": False}
    monkeypatch.delenv("NEURON_CONTEXT_LENGTH_BUCKETS")
    folder = ensure_artifact(parse_options({**bare, "override_neuron_config": override}))
    names = [program.name for program in read_manifest(folder).programs]
    assert names == ["step.t4", "step.t32"]


@pytest.mark.parametrize("layout", ["block", "contiguous"])
def test_listed_buckets_are_the_prefill_and_decode_programs(llm, bare, layout):
    lists = {
        "context_encoding_buckets": [16, 32], "token_generation_batches": [4],
        "token_generation_buckets": [64],
    }  # fmt: skip
    override = {**SAME, **lists}
    options = {"program_family": "unragged", "kv_layout": layout}
    other = LLM(**bare, **options, override_neuron_config=override)
    names = [program.name for program in other._engine.runner.info.programs]
    assert names == [
        "prefill.t16.c64", "prefill.t16.c128", "prefill.t32.c64", "prefill.t32.c128",
        "decode.r4.c64", "decode.r4.c128",
    ]  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=8)
    assert tokens(other, params) == tokens(llm, params)
