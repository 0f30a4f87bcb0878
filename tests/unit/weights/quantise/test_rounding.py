"""Quantisers: codes in range, errors within the theory's bounds, bad input refused by name."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ranvier.core.errors import CheckpointError, ConfigError
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import SCHEMES, parse_scheme

INT4 = [name for name in SCHEMES if name.startswith("int4-g")]


def matrix(seed=0, shape=(48, 256), shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, shape).astype(np.float32)


def error(found, wanted):
    return float(np.square(found.values() - wanted).mean() / np.square(wanted).mean())


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_gives_a_tensor_that_kernels_take(name):
    found = quantise(matrix(), parse_scheme(name), "m")
    found.check("m")
    assert found.shape == (48, 256)
    assert found.activation_bits == (8 if name == "int8-dynamic" else 16)
    scales = found.scales
    assert np.array_equal(scales.astype(ml_dtypes.bfloat16).astype(np.float32), scales)


@pytest.mark.parametrize("name", ["int8", "int8-dynamic"])
def test_int8_is_within_half_a_step_of_each_output(name):
    wanted = matrix()
    found = quantise(wanted, parse_scheme(name), "m")
    assert np.all(np.abs(found.values() - wanted) <= found.scales * 0.5001)
    assert np.all(found.scales <= np.abs(wanted).max(1, keepdims=True) / 127 * 1.01)


@pytest.mark.parametrize("name", INT4)
def test_int4_is_better_than_plain_rounding_of_the_range(name):
    wanted = matrix(shift=0.8 if name.endswith("asym") else 0.0)
    scheme = parse_scheme(name)
    found = quantise(wanted, scheme, "m")
    wide = wanted.reshape(48, -1, scheme.group)
    if scheme.is_asymmetric:
        low = np.minimum(wide.min(-1, keepdims=True), 0)
        scale = (np.maximum(wide.max(-1, keepdims=True), 0) - low) / 15
        zero = np.rint(-low / scale)
        plain = (np.clip(np.rint(wide / scale) + zero, 0, 15) - zero) * scale
    else:
        scale = np.abs(wide).max(-1, keepdims=True) / 7
        plain = np.rint(wide / scale) * scale
    assert found.group == scheme.group
    assert error(found, wanted) < np.square(plain - wide).mean() / np.square(wide).mean()


def test_important_inputs_are_rounded_better():
    wanted, importance = matrix(), np.ones(256, np.float32)
    importance[::8] = 1000
    plain = quantise(wanted, parse_scheme("int4-g64"), "m").values()
    aware = quantise(wanted, parse_scheme("int4-g64"), "m", importance).values()
    assert np.square(aware - wanted)[:, ::8].sum() < np.square(plain - wanted)[:, ::8].sum()


@pytest.mark.parametrize(("name", "bound"), [("fp8", 0.035), ("fp8-tensor", 0.035)])
def test_fp8_has_the_relative_error_of_three_bits(name, bound):
    wanted = matrix() * np.geomspace(1, 4, 48, dtype=np.float32)[:, None]
    found = quantise(wanted, parse_scheme(name), "m")
    assert error(found, wanted) < bound**2
    assert (len(np.unique(found.scales)) == 1) == (name == "fp8-tensor")


@pytest.mark.parametrize("name", SCHEMES)
def test_an_output_of_zeros_stays_zero(name):
    wanted = matrix()
    wanted[3] = 0
    found = quantise(wanted, parse_scheme(name), "m")
    assert not found.values()[3].any()
    assert np.all(found.scales > 0)


def test_a_group_that_does_not_divide_gives_way_to_the_next():
    assert quantise(matrix(shape=(4, 192)), parse_scheme("int4-g128"), "m").group == 64
    with pytest.raises(CheckpointError, match="layers.0.down_proj: no group of 128, 64, 32"):
        quantise(matrix(shape=(4, 200)), parse_scheme("int4"), "layers.0.down_proj")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    broken = matrix()
    broken[1, 2] = value
    with pytest.raises(CheckpointError, match="q_proj: a weight is not finite"):
        quantise(broken, parse_scheme("int8"), "q_proj")


@pytest.mark.parametrize(("text", "near"), [("int4-g48", "int4-g"), ("in8", "int8"), ("INT8", "")])
def test_an_unknown_scheme_names_the_nearest(text, near):
    with pytest.raises(ConfigError, match=f"Unknown quantisation scheme {text!r}.*{near}"):
        parse_scheme(text)
