"""Folders that others quantised, end to end: built at their width, and they say what they store.

The oracle is a dense f32 folder of the values that each convention means, worked out here.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from tests.conftest import byte_tokenizer
from tests.numerics.isa import NEEDS_KERNELS
from tests.numerics.test_tensor_parallel import LLAMA
from tests.unit.weights.stored.test_gptq import words

from ranvier import LLM, SamplingParams
from ranvier.models.table import resolve
from ranvier.weights.safetensors_write import save_safetensors

pytestmark = NEEDS_KERNELS
CONFIG = {
    **LLAMA, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
PROMPTS = [[7, 11, 5, 80, 33, 9], list(range(10, 60))]
FLOATS = {"num_bits": 8, "type": "float"}
GROUP, BLOCK = 64, 128
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
FARTHEST, FARTHEST_4 = 0.03, 0.1
"""Of log-probabilities from the oracle's: codes are exact, activations and caches have 16 bits;
beside codes of 4 bits the kernels take activations of 8 bits in small groups."""


def fp8_codes(matrix, scales):
    """e4m3 of the matrix over its scales [O, I], and what they mean."""
    codes = (matrix / scales).astype(ml_dtypes.float8_e4m3fn)
    return codes, codes.astype(np.float32) * scales


def fp8_tensor(matrix):
    scale = np.float32(np.abs(matrix).max() / 448)
    codes, values = fp8_codes(matrix, scale)
    scales = {"weight_scale": scale.reshape(()), "input_scale": np.float32(0.02).reshape(())}
    return {"weight": codes, **scales}, values


def fp8_channel(matrix):
    scales = (np.abs(matrix).max(1, keepdims=True) / 448).astype(np.float32)
    codes, values = fp8_codes(matrix, scales)
    return {"weight": codes, "weight_scale": scales}, values


def fp8_block(matrix, name="weight_scale_inv"):
    """As DeepSeek's and Qwen's folders: a scale for 128 x 128 weights, the last blocks cut off."""
    outputs, inputs = matrix.shape
    tall, wide = -(-outputs // BLOCK), -(-inputs // BLOCK)
    scales = np.empty((tall, wide), np.float32)
    for i, j in np.ndindex(tall, wide):
        part = matrix[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        scales[i, j] = np.abs(part).max() / 448
    codes, values = fp8_codes(matrix, scales.repeat(BLOCK, 0).repeat(BLOCK, 1)[:outputs, :inputs])
    return {"weight": codes, name: scales}, values


def int4(matrix):
    """Codes [O, I], zero points [O, G], scales [O, G], and what they mean."""
    groups = matrix.reshape(len(matrix), -1, GROUP)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = ((high - low) / 15).astype(np.float16)
    wide = scales.astype(np.float32)
    zeros = np.clip(np.rint(-low / wide), 1, 15).astype(np.int64)
    steps = np.rint(groups / wide[..., None]).astype(np.int64) + zeros[..., None]
    codes = np.clip(steps, 0, 15)
    values = (codes - zeros[..., None]) * wide[..., None]
    return codes.reshape(matrix.shape), zeros, scales, values.reshape(matrix.shape)


def gptq(matrix):
    codes, zeros, scales, values = int4(matrix)
    tensors = {
        "qweight": np.ascontiguousarray(words(codes, 4).T),
        "qzeros": words(zeros.T - 1, 4),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(matrix.shape[1]) // GROUP).astype(np.int32),
    }
    return tensors, values


def awq(matrix):
    codes, zeros, scales, values = int4(matrix)
    tensors = {
        "qweight": words(codes.T, 4, AWQ_ORDER),
        "qzeros": words(zeros.T, 4, AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }
    return tensors, values


def compressed(strategy, inputs, **more):
    group = {
        "targets": ["Linear"], "weights": {**FLOATS, "strategy": strategy, **more},
        "input_activations": {**FLOATS, **inputs},
    }  # fmt: skip
    return {"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"]}  # fmt: skip


def packed_block(matrix):
    return fp8_block(matrix, "weight_scale")


BLOCKS = {"weight_block_size": [BLOCK, BLOCK]}
FOLDERS = {
    "fp8 in blocks": (
        fp8_block, {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", **BLOCKS},
    ),
    "fp8 with static scales": (
        fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static",
                     "ignored_layers": ["lm_head"]},
    ),
    "compressed-tensors fp8 with static scales": (
        fp8_tensor, compressed("tensor", {"strategy": "tensor", "dynamic": False}),
    ),
    "compressed-tensors fp8": (
        fp8_channel, compressed("channel", {"strategy": "token", "dynamic": True}),
    ),
    "compressed-tensors fp8 in blocks": (
        packed_block,
        compressed("block", {"strategy": "group", "group_size": BLOCK, "dynamic": True},
                   block_structure=[BLOCK, BLOCK]),
    ),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False,
                    "sym": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
                  "zero_point": True}),
}  # fmt: skip


def dense_tensors():
    """Random weights of CONFIG, by their names; outliers as in trained models' rows."""
    rng, spec, tensors = np.random.default_rng(3), resolve(CONFIG), {}
    outputs = {
        "q_proj": spec.heads * 64,
        "k_proj": spec.kv_heads * 64,
        "v_proj": spec.kv_heads * 64,
    }
    for array in spec.arrays:
        for names in array.sources:
            for name in names:
                shape = list(array.shape[1:])
                part = next((size for key, size in outputs.items() if key in name), None)
                shape[0] = part or shape[0] // len(names)
                tensors[name] = rng.normal(0, 0.3 if "embed" in name else 0.1, shape).astype(
                    np.float32
                )
                if len(shape) == 2:
                    tensors[name] *= rng.uniform(0.3, 3, (shape[0], 1)).astype(np.float32)
    return tensors


def quantised(make):
    """The model's tensors with the linears stored as `make` does, and what they mean."""
    stored, means = dense_tensors(), dense_tensors()
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        parts, means[name] = make(stored.pop(name))
        stored |= {f"{name.removesuffix('.weight')}.{key}": part for key, part in parts.items()}
    return stored, means


def save(folder, tensors, quantization=None):
    folder.mkdir()
    more = {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
    (folder / "tokenizer.json").write_text(byte_tokenizer(160))
    save_safetensors(folder / "model.safetensors", tensors)
    return str(folder)


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request, tmp_path_factory):
    """(the quantised folder, the dense one of its values, how far they may be from each other)."""
    make, config = FOLDERS[request.param]
    stored, means = quantised(make)
    root = tmp_path_factory.mktemp("stored")
    bound = FARTHEST_4 if "qweight" in " ".join(stored) else FARTHEST
    return save(root / "quantised", stored, config), save(root / "dense", means), bound


def answers(folder, artifacts, dtype):
    """Log-probabilities of the prompts' own tokens, and what is generated after them."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    sizes = {"max_model_len": 128, "max_num_seqs": 2, "max_num_batched_tokens": 32}
    with LLM(folder, dtype=dtype, artifacts=artifacts, block_size=32, **sizes) as llm:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        outputs = llm.generate(prompts, params, use_tqdm=False)
    scores = [
        entry[token].logprob
        for prompt, out in zip(PROMPTS, outputs, strict=True)
        for token, entry in zip(prompt[1:], out.prompt_logprobs[1:], strict=True)
    ]
    return np.array(scores), [out.outputs[0].token_ids for out in outputs]


def test_names_that_leave_out_nothing_are_told(tmp_path, capsys):
    make, config = FOLDERS["fp8 with static scales"]
    tensors, _ = quantised(make)
    names = [f"model.visual.{i}" for i in range(5)]
    folder = save(tmp_path / "m", tensors, {**config, "ignored_layers": ["lm_head", *names]})
    answers(folder, str(tmp_path / "a"), "bfloat16")
    assert "not there: ['model.visual.0', 'model.visual.1', 'model.visual.2'] and 2 more" in (
        capsys.readouterr().err
    )


def test_a_stored_folder_says_what_its_numbers_mean(pair, tmp_path):
    folder, dense, farthest = pair
    found, tokens = answers(folder, str(tmp_path / "q"), "bfloat16")
    wanted, plain = answers(dense, str(tmp_path / "d"), "float32")
    moved = np.abs(found - wanted).max()
    assert moved < farthest, moved
    assert np.ptp(wanted) > 3
    assert [row[0] for row in tokens] == [row[0] for row in plain]
    assert {len(row) for row in tokens} == {8}
    [manifest] = (tmp_path / "q").glob("*/manifest.json")
    arrays = json.loads(manifest.read_text())["arrays"]
    kept = {name for name in arrays if name.endswith(".blob")}
    assert kept == {"qkv.blob", "o.blob", "gate_up.blob", "down.blob"}
