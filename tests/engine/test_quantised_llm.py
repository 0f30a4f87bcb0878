"""Quantised weights end to end: packed at their width, served, told apart by the artifact's key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.numerics.isa import NEEDS_KERNELS

from ranvier import LLM, SamplingParams
from ranvier.cli.main import main
from ranvier.core.errors import ConfigError
from ranvier.native import library

PROMPTS = [[7, 11, 5, 80, 33, 9], [3, 4], list(range(10, 60))]
FARTHEST = {"int8": 0.1, "int8-dynamic": 0.25, "int4": 1.0, "int4-asym": 1.0, "fp8": 0.6}
"""How far a scheme moves log-probabilities of the tiny random model, whose weights have no outliers
to spare and no training to be robust by."""


@pytest.fixture(scope="module", params=FARTHEST)
def quantised(request, tiny_options):
    with LLM(**{**tiny_options, "dtype": "bfloat16", "quantization": request.param}) as llm:
        llm.farthest = FARTHEST[request.param]
        yield llm


def scores(llm, prompt):
    """Log-probabilities of a prompt's own tokens."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    [out] = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    entries = zip(prompt[1:], out.prompt_logprobs[1:], strict=True)
    return np.array([entry[token].logprob for token, entry in entries])


@NEEDS_KERNELS
def test_quantised_model_stays_near_the_dense_one(quantised, llm):
    for prompt in PROMPTS:
        moved = np.abs(scores(quantised, prompt) - scores(llm, prompt))
        assert 0 < moved.max() < quantised.farthest


@NEEDS_KERNELS
def test_a_request_in_a_batch_is_bit_equal_to_itself_alone(quantised):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    together = quantised.generate(prompts, params, use_tqdm=False)
    for prompt, both in zip(prompts, together, strict=True):
        [alone] = quantised.generate([prompt], params, use_tqdm=False)
        assert alone.outputs[0].token_ids == both.outputs[0].token_ids
        assert alone.outputs[0].cumulative_logprob == both.outputs[0].cumulative_logprob


@NEEDS_KERNELS
def test_artifact_holds_the_bits_and_names_the_scheme(tiny_options, tmp_path):
    sizes = {}
    for scheme in ("none", "int8", "int4", "fp8", "fp8-tensor"):
        options = {**tiny_options, "dtype": "bfloat16", "artifacts": str(tmp_path)}
        LLM(**options, quantization=scheme).close()
    for path in tmp_path.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        arrays = manifest["arrays"]
        sizes[manifest["key"]["quantization"]] = sum(
            entry["size"] for name, entry in arrays.items() if name.startswith(("gate_up", "down"))
        )
    assert sizes["int8"] < 0.6 * sizes["none"]
    assert sizes["fp8"] == sizes["fp8-tensor"] == sizes["int8"]
    assert sizes["int4"] < 0.36 * sizes["none"]


def test_without_kernels_the_rounded_values_serve(tiny_options, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "register", lambda: False)
    options = {**tiny_options, "artifacts": str(tmp_path), "quantization": "int4"}
    with LLM(**options) as coarse:
        found = scores(coarse, PROMPTS[2])
    assert np.isfinite(found).all()
    [path] = tmp_path.glob("*/manifest.json")
    key = json.loads(path.read_text())["key"]
    assert (key["kernels"], key["quantization"]) == ("reference", "int4")


@pytest.mark.parametrize(
    ("named", "said"),
    [("int5", "Did you mean int"), ("gguf", "not quantised"), ("awq", "not quantised")],
)
def test_wrong_names_are_refused(tiny_options, named, said):
    with pytest.raises(ConfigError, match=said):
        LLM(**{**tiny_options, "quantization": named})


@pytest.mark.real
@NEEDS_KERNELS
def test_gguf_runs_at_its_own_width(tmp_path):
    options = {"max_model_len": 256, "max_num_seqs": 4, "artifacts": str(tmp_path)}
    with LLM("smollm2-135m", dtype="bfloat16", **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=6)
        [out] = llm.generate(["The capital of France is"], params, use_tqdm=False)
    assert "Paris" in out.outputs[0].text
    [manifest] = tmp_path.glob("*/manifest.json")
    weights = Path(manifest.parent / "weights.bin").stat().st_size
    assert json.loads(manifest.read_text())["key"]["quantization"].startswith("gguf")
    assert weights < 1.05 * 98_362_432  # the file's own size


@NEEDS_KERNELS
def test_a_stack_that_can_not_stay_quantised_is_told(tiny_model, tiny_options, tmp_path, capsys):
    given = ["--scheme", "int8", "--evaluation", "none", "--ignore", "layers.0.mlp.down_proj"]
    assert main(["quantize", str(tiny_model), *given, "--output", str(tmp_path / "m")]) == 0
    capsys.readouterr()
    options = {**tiny_options, "dtype": "bfloat16", "artifacts": str(tmp_path / "a")}
    LLM(**{**options, "model": str(tmp_path / "m")}).close()
    told = [line for line in capsys.readouterr().err.splitlines() if "not quantised" in line]
    assert [line.split(": ")[1] for line in told] == ["down"]
    [path] = (tmp_path / "a").glob("*/manifest.json")
    arrays = json.loads(path.read_text())["arrays"]
    assert "down" in arrays and {"qkv.blob", "o.blob", "gate_up.blob"} <= set(arrays)
