"""fp8 for devices whose e4m3 ends at 240: the same bits, rescaled where they reach beyond.

trn2 reads exponent 15 as infinity and NaN, where e4m3fn counts on to 448. Below that the formats
have the same bits.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from ranvier.weights.quantised import QuantTensor

__all__ = ["fit_fp8"]

FACTOR = np.float32(2)
"""A power of two: only numbers in the subnormal range (below 2**-6) lose their last bit."""


def fit_fp8(tensor: QuantTensor, largest: float) -> QuantTensor:
    """The tensor with no code beyond `largest` (240): groups that have one double their scale.

    A tensor with one scale for all keeps one. Requires: largest >= 224, kind "fp8".
    """
    assert tensor.kind == "fp8" and tensor.scales is not None and largest >= 224
    outputs, inputs = tensor.shape
    groups = inputs // tensor.group
    wide = tensor.codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    wide = wide.reshape(outputs, groups, tensor.group)
    is_beyond = np.abs(wide).max(-1) > largest
    if (tensor.scales == tensor.scales.flat[0]).all():
        is_beyond = np.full_like(is_beyond, is_beyond.any())
    halved = np.where(is_beyond[..., None], wide / FACTOR, wide).astype(ml_dtypes.float8_e4m3fn)
    return replace(
        tensor,
        codes=halved.view(np.uint8).reshape(outputs, inputs),
        scales=np.where(is_beyond, tensor.scales * FACTOR, tensor.scales),
    )
