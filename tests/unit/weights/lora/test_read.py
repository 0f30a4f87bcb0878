"""Adapters in PEFT's format: scales as PEFT computes them; every bad input is named."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest

from ranvier.core.errors import AdapterError
from ranvier.weights.lora.read import read_lora
from ranvier.weights.safetensors import SafetensorsFile
from tests.adapters import LLAMA, full_name, modules_of, random_tensors, save_adapter

MODULES = modules_of(LLAMA)
Q0, V0 = full_name(0, "q_proj"), full_name(0, "v_proj")
A_OF_Q0 = f"base_model.model.{Q0}.lora_A.weight"


def save(folder, names=("q_proj", "v_proj"), rank=8, ranks=None, dtype=np.float32, **config):
    tensors = random_tensors(modules_of(LLAMA, names=names), rank, ranks=ranks)
    return save_adapter(folder, {k: t.astype(dtype) for k, t in tensors.items()}, **config)


def scale(folder, module):
    """By how much B was multiplied."""
    tensors = random_tensors(modules_of(LLAMA, names=("q_proj", "v_proj")), 8)
    b = tensors[f"base_model.model.{module}.lora_B.weight"]
    got = read_lora(folder, MODULES, 64).pairs[module].b
    np.testing.assert_allclose(got / b, got[0, 0] / b[0, 0], rtol=1e-5)
    return float(got[0, 0] / b[0, 0])


def test_an_adapter_is_its_pairs(tmp_path):
    lora = read_lora(save(tmp_path, target_modules=["q_proj", "v_proj"]), MODULES, 8)
    assert lora.rank == 8 and len(lora.pairs) == 6
    assert lora.pairs[Q0].a.shape == (8, 64) and lora.pairs[V0].b.shape == (32, 8)


@pytest.mark.parametrize(
    ("config", "q", "v"),
    [
        ({"lora_alpha": 16}, 2.0, 2.0),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(8), 4 / math.sqrt(8)),
        ({"alpha_pattern": {"v_proj": 8}}, 2.0, 1.0),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 80}}, 10.0, 2.0),
        ({"alpha_pattern": {r".*\.(q|k)_proj": 24}}, 3.0, 2.0),
        ({"alpha_pattern": {"^v_proj": 8, "^model.layers.0.self_attn.q_proj": 8}}, 1.0, 2.0),
        ({"alpha_pattern": {"proj": 8}}, 2.0, 2.0),
        ({"fan_in_fan_out": True, "target_modules": "all-linear"}, 2.0, 2.0),
        ({"target_modules": r".*\.self_attn\.(q|v)_proj"}, 2.0, 2.0),
    ],
)
def test_scales_are_those_of_peft(tmp_path, config, q, v):
    folder = save(tmp_path, **config)
    assert scale(folder, Q0) == pytest.approx(q)
    assert scale(folder, V0) == pytest.approx(v)


def test_ranks_may_differ_by_pattern(tmp_path):
    folder = save(tmp_path, ranks={V0: 3}, rank_pattern={"0.self_attn.v_proj": 3})
    lora = read_lora(folder, MODULES, 8)
    assert lora.pairs[V0].a.shape == (3, 64) and lora.rank == 8


def test_bf16_is_read_and_the_digest_is_of_the_content(tmp_path):
    one = read_lora(save(tmp_path / "a", dtype=ml_dtypes.bfloat16), MODULES, 8)
    same = read_lora(save(tmp_path / "b", dtype=ml_dtypes.bfloat16), MODULES, 8)
    other = read_lora(save(tmp_path / "c", dtype=ml_dtypes.bfloat16, lora_alpha=17), MODULES, 8)
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA is not supported"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"target_modules": ["q_prj"]}, "q_prj: this model has no such linear.*nearest is q_proj"),
        ({"target_modules": ["lm_head"]}, "lm_head: adapters of embeddings and of the LM head"),
        ({"target_modules": [3]}, "target_modules"),
        ({"r": 0}, "r is 0, must be a positive number"),
        ({"r": 2.5}, "r is 2.5, must be a whole number"),
        ({"r": 4}, "q_proj has rank 8, adapter_config.json says 4"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"alpha_pattern": {"(a+)+$": 8}}, r"alpha_pattern has the pattern '\(a\+\)\+\$'"),
        ({"rank_pattern": {"(": 8}}, "rank_pattern has the pattern"),
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"use_tora": True}, "use_tora=True is not known"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_a_config_asks_and_is_not_done_is_named(tmp_path, config, says):
    with pytest.raises(AdapterError, match=says) as caught:
        read_lora(save(tmp_path, **config), MODULES, 64)
    assert caught.value.status == 400


def wrong(name, value):
    """The tensors of a good adapter, one of them changed or, with None, left out."""
    tensors = random_tensors(modules_of(LLAMA, names=("q_proj",)), 8)
    tensors.pop(name, None)
    return tensors if value is None else {**tensors, name: value}


NOT_FINITE = np.full((8, 64), np.nan, np.float32)
FLAT = np.zeros((64, 8), np.float32)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (wrong(A_OF_Q0, np.zeros((8, 48), np.float32)), r"A \[8, 48\].*takes A \[rank, 64\]"),
        (wrong(A_OF_Q0, np.zeros((4, 64), np.float32)), r"A \[4, 64\] and B \[64, 8\]"),
        (wrong(A_OF_Q0, NOT_FINITE), "not finite"),
        (wrong(A_OF_Q0, np.zeros((8, 64), np.int8)), "is int8; supported"),
        (wrong(A_OF_Q0, None), "has only lora_B"),
        (wrong("base_model.model.model.layers.0.mlp.gate.lora_A.weight", FLAT), "no such linear"),
        (wrong("base_model.model.lm_head.lora_A.weight", FLAT), "embeddings and of the LM head"),
        (wrong("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", FLAT), "nearest"),
        (wrong("base_model.model.lm_head.weight", FLAT), "no LoRA matrix"),
        (wrong(f"base_model.model.{Q0}.lora_A.default.weight", FLAT), "two matrices A"),
        ({}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, says):
    with pytest.raises(AdapterError, match=says):
        read_lora(save_adapter(tmp_path, tensors), MODULES, 64)


def test_a_rank_above_the_limit_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="has rank 8, the limit is 4") as caught:
        read_lora(save(tmp_path), MODULES, 4)
    assert "--max-lora-rank" in caught.value.hint


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    folder = save(tmp_path)
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(AdapterError, match="1073741824 bytes"):
        read_lora(folder, MODULES, 8)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_config.json: cannot be read"):
        read_lora(tmp_path / "none", MODULES, 8)
    folder = save(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="there is no such file") as caught:
        read_lora(folder, MODULES, 8)
    assert "pickle" in caught.value.hint
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(AdapterError, match="header length"):
        read_lora(folder, MODULES, 8)
    for text in ("{", "[]", json.dumps({"r": True})):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(AdapterError, match=r"adapter_config.json"):
            read_lora(folder, MODULES, 8)


def test_a_file_that_is_cut_while_it_is_served_harms_nothing(tmp_path):
    """A mapped file that others shorten would end the process."""
    path = save(tmp_path / "a") / "adapter_model.safetensors"
    content = path.read_bytes()
    file = SafetensorsFile(path, content)
    path.write_bytes(b"")
    name = file.names()[0]
    assert np.isfinite(file.read(name)).all()
    for size in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
            read_lora(path.parent, MODULES, 16)
