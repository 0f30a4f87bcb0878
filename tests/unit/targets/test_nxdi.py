"""A folder compiled by NxD Inference: its configuration is read, its binary never opened."""

from __future__ import annotations

import json
import shlex

import pytest

from ranvier.cli.neuron import equivalent_command
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.nxdi import is_nxdi, read_nxdi
from ranvier.targets.neuron.config.translate import translate

STORED = {
    "batch_size": 4, "tkg_batch_size": 4, "ctx_batch_size": 1, "seq_len": 2048, "max_length": 2048,
    "max_context_length": 1024, "n_positions": 2048, "torch_dtype": "bfloat16", "tp_degree": 8,
    "enable_bucketing": True, "buckets": [2048], "context_encoding_buckets": [256, 1024],
    "token_generation_buckets": [512, 2048], "prefix_buckets": None, "async_mode": True,
    "is_block_kv_layout": True, "pa_num_blocks": 300, "pa_block_size": 32,
    "is_prefix_caching": True, "fused_qkv": True, "quantized": False, "lora_config": None,
    "on_device_sampling_config": {"do_sample": True, "top_k": 50, "top_p": 0.9, "dynamic": False},
    "speculation_length": 0, "padding_side": "right", "weights_to_skip_layout_optimization": [],
    "blockwise_matmul_config": {}, "quantize_clamp_bound": float("inf"),
}  # fmt: skip


def compiled(folder, beside=(), **changes):
    folder.mkdir(exist_ok=True)
    whole = {
        "_name_or_path": "meta-llama/Llama-3.1-8B",
        "hidden_size": 4096,
        "neuron_config": {**STORED, **changes},
        **dict(beside),
    }
    (folder / "neuron_config.json").write_text(json.dumps(whole))
    (folder / "model.pt").write_bytes(b"\x80\x04never opened")
    return folder


def test_its_configuration_is_offered_as_options(tmp_path):
    found = read_nxdi(compiled(tmp_path))
    assert found.model == "meta-llama/Llama-3.1-8B"
    assert found.options == {
        "max_model_len": 2048, "max_num_seqs": 4, "max_num_batched_tokens": 1024,
        "dtype": "bfloat16", "tensor_parallel_size": 8, "enable_prefix_caching": True,
        "async_scheduling": True, "block_size": 32, "num_gpu_blocks_override": 300,
    }  # fmt: skip
    assert found.override == {
        "enable_bucketing": True,
        "context_encoding_buckets": [256, 1024],
        "token_generation_buckets": [512, 2048],
        "on_device_sampling_config": {"do_sample": True, "top_k": 50, "top_p": 0.9},
    }
    assert found.left_out == ()


DRAFT = {"worker_cls": "x", "draft_model_path": "/models/draft", "draft_config": {"a": 1}}
FUSED = {"speculation_length": 5, "enable_fused_speculation": True}


@pytest.mark.parametrize(
    ("stored", "method"),
    [
        ({}, "draft_model"),
        ({"enable_eagle_speculation": True}, "eagle"),
        ({"enable_eagle_speculation": True, "is_eagle3": True}, "eagle3"),
    ],
)
def test_speculation_comes_with_the_draft_that_the_folder_names(tmp_path, stored, method):
    found = read_nxdi(compiled(tmp_path, beside={"fused_spec_config": DRAFT}, **FUSED, **stored))
    config = {"model": "/models/draft", "num_speculative_tokens": 5, "method": method}
    assert found.options["speculative_config"] == config
    assert found.left_out == ()
    words = shlex.split(equivalent_command(found, "m"))
    assert json.loads(words[words.index("--speculative-config") + 1]) == config


@pytest.mark.parametrize("fused", [None, 3, {}, {"draft_model_path": 7}])
def test_speculation_without_a_draft_is_left_out_by_name(tmp_path, fused):
    found = read_nxdi(compiled(tmp_path, beside={"fused_spec_config": fused}, **FUSED))
    assert "speculative_config" not in found.options
    first, second = found.left_out
    assert "speculation_length = 5: the folder names no draft" in first
    assert "enable_fused_speculation = True" in second


def test_what_is_offered_is_accepted(tmp_path):
    found = read_nxdi(compiled(tmp_path))
    made = translate(None, found.override, found.options, {})
    assert made.buckets.prefill_tokens.sizes == (256, 1024)
    assert made.options["override_generation_config"] == {"top_k": 50, "top_p": 0.9}


def test_sizes_of_the_contiguous_layout_are_not_taken_for_blocks(tmp_path):
    found = read_nxdi(compiled(tmp_path, is_block_kv_layout=False, pa_block_size=2048))
    assert "block_size" not in found.options
    assert "num_gpu_blocks_override" not in found.options


def test_bucketing_turned_off_stays_off(tmp_path):
    found = read_nxdi(compiled(tmp_path, enable_bucketing=False, on_device_sampling_config=None))
    assert found.override == {"enable_bucketing": False}


def test_what_cannot_be_taken_over_is_named_with_its_reason(tmp_path):
    found = read_nxdi(
        compiled(
            tmp_path, is_mxfp4_compute=True, of_tomorrow=3, seq_len="long", torch_dtype="float16",
            kv_quant_config={"direct_cast": True},
        )
    )  # fmt: skip
    text = "\n".join(found.left_out)
    for part in ("is_mxfp4_compute = True: weights are int8", "of_tomorrow = 3: no field",
                 "seq_len = 'long': not of the type",
                 "torch_dtype = 'float16': supported"):  # fmt: skip
        assert part in text
    assert "kv_quant_config" not in text
    assert "max_model_len" not in found.options and "dtype" not in found.options


def test_a_folder_is_recognised_by_both_files(tmp_path):
    folder = compiled(tmp_path)
    assert is_nxdi(folder)
    (folder / "model.pt").unlink()
    assert not is_nxdi(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neuron_config.json"),
        ("[1]", "JSON object"),
        ("{}", "no dictionary neuron_config"),
        ('{"neuron_config": 3}', "no dictionary neuron_config"),
        ("[" * 100_000, "neuron_config.json"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "neuron_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_nxdi(tmp_path)


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none"):
        read_nxdi(tmp_path / "none")
