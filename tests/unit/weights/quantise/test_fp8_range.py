"""fp8 for trn2: no code beyond 240, the values as they were, read as the device reads them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ranvier.weights.quantise.fp8_range import fit_fp8
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import parse_scheme
from ranvier.weights.quantised import QuantTensor


def made(name, shape=(32, 256)):
    matrix = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    matrix *= np.geomspace(1, 8, shape[0], dtype=np.float32)[:, None]
    return quantise(matrix, parse_scheme(name), "m")


def as_the_device(tensor):
    """Values by the format with infinities (ml_dtypes' float8_e4m3), which the device reads."""
    codes = tensor.codes.view(ml_dtypes.float8_e4m3).astype(np.float32)
    return codes * np.repeat(tensor.scales, tensor.group, 1)


@pytest.mark.parametrize("name", ["fp8", "fp8-tensor"])
def test_what_was_beyond_240_is_rescaled(name):
    before = made(name)
    assert not np.isfinite(as_the_device(before)).all()  # the fault that this mends
    after = fit_fp8(before, 240.0)
    np.testing.assert_array_equal(as_the_device(after), after.values())
    step = after.scales * 2.0**-9
    assert np.all(np.abs(after.values() - before.values()) <= step / 2)
    assert (len(np.unique(after.scales)) == 1) == (name == "fp8-tensor")


def test_groups_within_the_range_keep_their_bits():
    codes = np.full((2, 64), 0x40, np.uint8)
    codes[1, 40] = 0x7E  # 448
    tensor = QuantTensor(
        codes=codes, bits=8, group=32, kind="fp8",
        scales=np.array([[1, 2], [3, 4]], np.float32),
    )  # fmt: skip
    after = fit_fp8(tensor, 240.0)
    assert after.scales.tolist() == [[1, 2], [3, 8]]
    np.testing.assert_array_equal(after.codes[0], codes[0])
    np.testing.assert_array_equal(after.values(), tensor.values())
