"""GPTQ, AWQ and FP8 folders: packed here number by number, read back to the same values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ranvier.core.errors import CheckpointError
from ranvier.weights.stored.table import names_without_module
from tests.unit.weights.stored.folders import MODULE, stored

OUTPUTS, INPUTS, GROUP = 16, 64, 32
WEIGHT = f"{MODULE}.weight"


def words(numbers, bits, order=None):
    """Numbers [..., n] in int32 words, one after the other; number order[j] goes to place j."""
    count = 32 // bits
    packed = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // count), np.int64)
    for place in np.ndindex(packed.shape):
        word = 0
        for j in range(count):
            source = order[j] if order else j
            word |= int(numbers[(*place[:-1], place[-1] * count + source)]) << (bits * j)
        packed[place] = word
    return packed.astype(np.uint32).view(np.int32)


def random(bits, seed=0):
    """Codes [O, I], zero points and scales [O, G], and the values that they mean."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (OUTPUTS, INPUTS))
    zeros = rng.integers(1, 1 << bits, (OUTPUTS, INPUTS // GROUP))
    scales = rng.uniform(0.01, 0.1, zeros.shape).astype(np.float16)
    wide = codes - np.repeat(zeros, GROUP, 1)
    return codes, zeros, scales, wide * np.repeat(scales.astype(np.float32), GROUP, 1)


def gptq(bits=4, form="gptq", seed=0):
    codes, zeros, scales, values = random(bits, seed)
    shift = 1 if form == "gptq" else 0
    tensors = {
        "qweight": np.ascontiguousarray(words(codes, bits).T),
        "qzeros": words(zeros.T - shift, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(INPUTS) // GROUP).astype(np.int32),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": form}
    return config, tensors, values


def awq(seed=0):
    codes, zeros, scales, values = random(4, seed)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "qweight": words(codes.T, 4, order),
        "qzeros": words(zeros.T, 4, order),
        "scales": np.ascontiguousarray(scales.T),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return config, tensors, values


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_gives_the_values_that_were_packed(tmp_path, bits, form):
    config, tensors, values = gptq(bits, form)
    checkpoint = stored(tmp_path, config, tensors)
    found = checkpoint.read_quantised(WEIGHT)
    assert (found.bits, found.group) == (bits, GROUP)
    np.testing.assert_allclose(found.values(), values, rtol=0, atol=1e-5 if bits == 8 else 0)
    assert checkpoint.quantisation == f"gptq int{bits} g32"
    assert checkpoint.tensor_names() == [WEIGHT]


def test_awq_gives_the_values_that_were_packed(tmp_path):
    config, tensors, values = awq()
    checkpoint = stored(tmp_path, config, tensors)
    np.testing.assert_array_equal(checkpoint.read(WEIGHT), values)
    assert checkpoint.quantisation == "awq int4 g32"


def test_gptq_out_of_order_is_refused(tmp_path):
    config, tensors, _ = gptq()
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()
    with pytest.raises(CheckpointError, match=r"g_idx: its inputs are out of order \(desc_act\)"):
        stored(tmp_path, config, tensors).read(WEIGHT)


BAD = {
    "gptq bits": (gptq, {"bits": 3}, {}, r"quantization_config\.bits is 3; supported: one of 4, 8"),
    "gptq form": (gptq, {"checkpoint_format": "marlin"}, {}, "checkpoint_format is 'marlin'"),
    "gptq rules": (gptq, {"dynamic": {"-:lm_head": {}}}, {}, r"dynamic is"),
    "gptq group": (gptq, {"group_size": 48}, {}, "groups of 48 do not divide its 64 inputs"),
    "gptq no group": (gptq, {"group_size": None}, {}, "group_size is None"),
    "gptq zeros": (
        gptq, {}, {"qzeros": np.zeros((2, 1), np.int32)}, r"qzeros: its shape is \(2, 1\)",
    ),
    "gptq scales": (
        gptq, {}, {"scales": np.ones((1, 16), np.float16)}, r"scales: its shape is \(1, 16\)",
    ),
    "gptq codes": (
        gptq, {}, {"qweight": np.ones(4, np.int32)}, r"qweight: its shape is \(4,\)",
    ),
    "gptq scale that is not finite": (
        gptq, {}, {"scales": np.full((2, 16), np.inf, np.float16)}, "scales: a scale is not finite",
    ),
    "gptq zero scales": (
        gptq, {}, {"scales": np.zeros((2, 16), np.float16)},
        r"down_proj\.scales: a scale is zero where the codes are not",
    ),
    "gptq and awq mixed": (
        gptq, {}, {"qweight": np.ones((64, 2), np.int32)},
        r"down_proj\.scales: its shape is \(2, 16\), must be \(16, 2\)",
    ),
    "awq group": (awq, {"group_size": 48}, {}, "down_proj: groups of 48 do not divide its 64"),
    "awq shape": (
        awq, {}, {"scales": np.ones((1, 16), np.float16)},
        r"down_proj\.scales: its shape is \(1, 16\)",
    ),
    "awq zero scales": (
        awq, {}, {"scales": np.zeros((2, 16), np.float16)},
        r"down_proj\.scales: a scale is zero where the codes are not",
    ),
    "awq version": (awq, {"version": "marlin"}, {}, "version is 'marlin'; supported: one of gemm"),
    "awq bits": (awq, {"bits": 8}, {}, "bits is 8; supported: one of 4"),
    "awq left out": (
        awq, {"modules_to_not_convert": ["down_proj"]}, {}, "leaves .*down_proj out, but",
    ),
    "awq scales": (
        awq, {}, {"scales": np.full((2, 16), np.nan, np.float16)}, "scales: a scale is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_with_module_and_field(tmp_path, case):
    make, fields, changed, message = BAD[case]
    config, tensors, _ = make()
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path, {**config, **fields}, {**tensors, **changed}).read(WEIGHT)


def fp8(scale_name, scales, config=None, shape=(OUTPUTS, INPUTS)):
    weight = np.random.default_rng(0).normal(0, 20, shape).astype(ml_dtypes.float8_e4m3fn)
    fields = {"quant_method": "fp8", "activation_scheme": "dynamic", **(config or {})}
    return fields, {"weight": weight, scale_name: scales}, weight.astype(np.float32)


@pytest.mark.parametrize("shape", [(), (1,), (OUTPUTS,), (OUTPUTS, 1)])
def test_fp8_with_one_scale_or_one_an_output(tmp_path, shape):
    scales = np.random.default_rng(1).uniform(0.01, 0.1, shape).astype(np.float32)
    config, tensors, wide = fp8("weight_scale", scales, {"activation_scheme": "static"})
    tensors["input_scale"] = np.float32(0.5).reshape(())
    checkpoint = stored(tmp_path, config, tensors)
    rows = np.broadcast_to(scales.reshape(-1, 1), (OUTPUTS, 1))
    np.testing.assert_array_equal(checkpoint.read(WEIGHT), wide * rows)
    assert checkpoint.tensor_names() == [WEIGHT]


@pytest.mark.parametrize(("shape", "group"), [((160, 256), 128), ((256, 192), 64)])
def test_fp8_blocks_become_groups_of_each_output(tmp_path, shape, group):
    tall, wide = -(-shape[0] // 128), -(-shape[1] // 128)
    scales = np.random.default_rng(1).uniform(0.01, 0.1, (tall, wide)).astype(np.float32)
    block = {"weight_block_size": [128, 128]}
    config, tensors, values = fp8("weight_scale_inv", scales, block, shape)
    found = stored(tmp_path, config, tensors).read_quantised(WEIGHT)
    each = scales.repeat(128, 0).repeat(128, 1)[: shape[0], : shape[1]]
    assert found.group == group
    np.testing.assert_array_equal(found.values(), values * each)


def small(value, *place):
    scales = np.full((OUTPUTS, 1), 0.01, np.float32)
    scales[place] = value
    return scales


BAD_FP8 = {
    "format": ({"fmt": "e5m2"}, {}, r"quantization_config\.fmt is 'e5m2'; supported: one of e4m3"),
    "block": ({"weight_block_size": [128]}, {}, "weight_block_size is .*outputs and inputs"),
    "left out": ({"ignored_layers": ["down_proj"]}, {}, "leaves .*down_proj out, but it is stored"),
    "missing": (
        {"weight_block_size": [128, 128]}, {}, r"down_proj\.weight_scale: its shape is \(16, 1\)",
    ),
    "shape": (
        {}, {"weight_scale": np.ones(3, np.float32)},
        r"down_proj\.weight_scale: its shape is \(3,\)",
    ),
    "not finite": (
        {}, {"weight_scale": small(np.nan, 3)}, r"down_proj\.weight_scale: a scale is not finite",
    ),
    "negative": (
        {}, {"weight_scale": small(-1, 3)}, r"down_proj\.weight_scale: a scale is negative",
    ),
    "zero": ({}, {"weight_scale": small(0, 3)}, r"down_proj\.weight_scale: a scale is zero where"),
    "type": (
        {}, {"weight": np.ones((OUTPUTS, INPUTS), np.int8)}, r"down_proj\.weight: its type is int8",
    ),
    "not a number": (
        {}, {"weight": np.full((OUTPUTS, INPUTS), np.nan, ml_dtypes.float8_e4m3fn)},
        r"down_proj\.weight: a weight is not a number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FP8)
def test_a_bad_fp8_folder_is_refused_with_module_and_field(tmp_path, case):
    fields, changed, message = BAD_FP8[case]
    config, tensors, _ = fp8("weight_scale", small(0.01, 0), fields)
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path, config, {**tensors, **changed}).read_quantised(WEIGHT)


def test_blocks_that_do_not_divide_are_refused(tmp_path):
    block = {"weight_block_size": [128, 24]}
    config, tensors, _ = fp8("weight_scale_inv", np.ones((1, 3), np.float32), block)
    with pytest.raises(CheckpointError, match="weight_scale_inv: blocks of 24 do not divide 64"):
        stored(tmp_path, config, tensors).read_quantised(WEIGHT)


def test_names_that_leave_out_nothing_are_found():
    tensors = [WEIGHT, "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
    names = ["lm_head", "layers.1", "re:.*norm", "model.visual", "down", "re:.*gate$"]
    for fields in (
        {"quant_method": "awq", "group_size": 32, "modules_to_not_convert": names},
        {"quant_method": "fp8", "ignored_layers": names},
    ):
        config = {"quantization_config": {"bits": 4, **fields}}
        assert names_without_module(config, tensors) == names[3:]
    assert names_without_module({}, tensors) == []
