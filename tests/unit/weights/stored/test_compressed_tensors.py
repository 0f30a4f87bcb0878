"""compressed-tensors: what its own package stores and widens; bad folders refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from ranvier.core.errors import CheckpointError
from ranvier.weights.safetensors import SafetensorsFile
from tests.unit.weights.stored.folders import MODULE, stored

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.safetensors"))


def golden(path):
    """(quantization_config, tensors, values) of a file that make_goldens.py wrote."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    file = SafetensorsFile(path)
    tensors = {name: np.array(file.read(name)) for name in file.names()}
    values = tensors.pop("values")
    return json.loads(header["__metadata__"]["quantization_config"]), tensors, values


def named(name):
    return golden(next(path for path in GOLDENS if path.stem == name))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_values_are_those_of_the_package(tmp_path, path):
    config, tensors, values = golden(path)
    checkpoint = stored(tmp_path, config, tensors)
    found = checkpoint.read_quantised(f"{MODULE}.weight")
    assert checkpoint.tensor_names() == [f"{MODULE}.weight"]
    assert checkpoint.shape(f"{MODULE}.weight") == found.shape == values.shape
    assert found.bits == (4 if "w4" in path.stem else 8)
    assert found.kind == ("fp8" if "fp8" in path.stem else "int")
    assert found.activation_bits == (8 if path.stem == "w8a8" else 16)
    # 8 bits with zero points become offsets: one rounding more than the package's
    bound = 1e-6 if path.stem == "w8a16-group-asym" else 0
    np.testing.assert_allclose(found.values(), values, rtol=0, atol=bound)
    np.testing.assert_array_equal(checkpoint.read(f"{MODULE}.weight"), found.values())
    assert checkpoint.quantisation.startswith("compressed-tensors ")


def test_the_zero_points_are_real(tmp_path):
    config, tensors, _ = named("w4a16-group-asym")
    found = stored(tmp_path, config, tensors).read_quantised(f"{MODULE}.weight")
    assert len(np.unique(found.zeros)) > 2


def broken(name, change):
    config, tensors, _ = named(name)
    config = copy.deepcopy(config)
    change(config, config["config_groups"]["0"], tensors)
    return config, tensors


def put(target, key, value):
    target[key] = value


BAD = {
    "scales of the wrong shape": (
        "w4a16-group",
        lambda c, g, t: put(t, "weight_scale", t["weight_scale"][:, :2]),
        r"down_proj\.weight_scale: its shape is \(48, 2\), must be \(48, 4\)",
    ),
    "a scale that is not a number": (
        "w8a8",
        lambda c, g, t: put(t["weight_scale"], (3, 0), np.nan),
        r"down_proj\.weight_scale: a scale is not finite",
    ),
    "a zero scale": (
        "w8a8",
        lambda c, g, t: put(t["weight_scale"], (3, 0), 0),
        r"down_proj\.weight_scale: a scale is zero where the codes are not",
    ),
    "a negative scale": (
        "w8a8",
        lambda c, g, t: put(t["weight_scale"], (3, 0), -1),
        r"down_proj\.weight_scale: a scale is negative",
    ),
    "a group that does not divide": (
        "w4a16-group",
        lambda c, g, t: put(g["weights"], "group_size", 48),
        "down_proj: groups of 48 do not divide its 128 inputs",
    ),
    "missing scales": (
        "w4a16-group",
        lambda c, g, t: t.pop("weight_scale"),
        r"down_proj\.weight_scale: missing",
    ),
    "missing zero points": (
        "w4a16-group",
        lambda c, g, t: put(g["weights"], "symmetric", False),
        r"down_proj\.weight_zero_point: missing",
    ),
    "codes of a wrong type": (
        "w8a8",
        lambda c, g, t: put(t, "weight", t["weight"].astype(np.int16)),
        r"down_proj\.weight: its type is int16, must be int8",
    ),
    "a shape that contradicts the codes": (
        "w4a16-group",
        lambda c, g, t: put(t, "weight_shape", np.array([48, 64])),
        r"weight_shape says \[48, 64\], the codes \[48, 128\]",
    ),
    "a target that matches nothing": (
        "w8a8",
        lambda c, g, t: put(g, "targets", ["Linear", "re:.*up_projection"]),
        r"target 're:\.\*up_projection' matches no module",
    ),
    "a module that is left out and quantised": (
        "w8a8",
        lambda c, g, t: put(c, "ignore", ["re:.*down_proj"]),
        "ignore leaves model.layers.0.mlp.down_proj out, but it is stored quantised",
    ),
    "a module that is dense and not left out": (
        "w8a8",
        lambda c, g, t: (t.pop("weight_scale"), put(t, "weight", np.ones((4, 4), np.float32))),
        "down_proj: quantization_config.ignore says it is quantised; it is stored dense",
    ),
    "activations with static scales": (
        "w8a8",
        lambda c, g, t: put(g["input_activations"], "dynamic", False),
        "input_activations.dynamic is False; supported: one of True",
    ),
    "8-bit activations on 4-bit groups": (
        "w4a16-group",
        lambda c, g, t: put(g, "input_activations", {"dynamic": True, "strategy": "token"}),
        "8-bit activations need symmetric weights with one scale an output",
    ),
    "a number of bits": (
        "w4a16-group",
        lambda c, g, t: put(g["weights"], "num_bits", 3),
        "weights.num_bits is 3; supported: one of 4, 8",
    ),
    "a format": (
        "w4a16-group",
        lambda c, g, t: put(c, "format", "marlin-24"),
        "format is 'marlin-24'; supported: one of int-quantized",
    ),
    "sparse weights": (
        "w8a8",
        lambda c, g, t: put(c, "sparsity_config", {"format": "sparse-24-bitmask"}),
        "sparsity_config",
    ),
    "inputs out of order": (
        "w4a16-group",
        lambda c, g, t: put(g["weights"], "actorder", "group"),
        "weights.actorder is 'group'",
    ),
    "a weight that is not a number": (
        "fp8-channel",
        lambda c, g, t: put(t["weight"].view(np.uint8), (0, 0), 0x7F),
        r"down_proj\.weight: a weight is not a number",
    ),
    "blocks of the wrong shape": (
        "fp8-block",
        lambda c, g, t: put(t, "weight_scale", t["weight_scale"][:1]),
        r"weight_scale: its shape is \(1, 2\), must be \(2, 2\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_with_module_and_field(tmp_path, case):
    name, change, message = BAD[case]
    config, tensors = broken(name, change)
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path, config, tensors).read_quantised(f"{MODULE}.weight")


def test_a_group_of_zeros_may_have_a_scale_of_zero(tmp_path):
    config, tensors, values = named("w8a8")
    tensors["weight"][3], tensors["weight_scale"][3] = 0, 0
    found = stored(tmp_path, config, tensors).read(f"{MODULE}.weight")
    assert not found[3].any() and np.array_equal(found[4], values[4])


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "mxfp4", "marlin", None])
def test_an_unsupported_scheme_is_named_with_the_supported_ones(tmp_path, method):
    with pytest.raises(CheckpointError, match=f"{method!r} is not supported[^$]*gptq, awq, fp8"):
        stored(tmp_path, {"quant_method": method}, {}).tensor_names()
