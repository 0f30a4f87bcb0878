"""Round a matrix to a scheme: scales by least squared error, codes to the nearest.

Scales are chosen among bfloat16 numbers, which the files hold and the kernels read without loss.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantised import QuantTensor

__all__ = ["FP8_MAX", "grid_of", "quantise"]

Floats = NDArray[np.float32]

FP8_MAX = 448.0
"""Largest number of float8 e4m3fn."""
SHRINKS = np.linspace(1.0, 0.62, 14, dtype=np.float32)
"""Tried ranges of a group, as shares of its extremes: clipping outliers may cost less."""
ROWS_BYTES = 2**18
"""Bytes of f32 that are searched at a time, so that all passes stay in the cache."""


def quantise(
    matrix: Floats, scheme: Scheme, name: str, importance: Floats | None = None
) -> QuantTensor:
    """The matrix [O, I] in a scheme, each code the nearest. Raises CheckpointError.

    `importance` f32 [I]: weights of the squared errors that choose the scales (int4 only).
    """
    _check(matrix, name)
    if scheme.kind == "fp8":
        return _fp8(matrix, scheme)
    if scheme.bits == 8:
        scales = _round_up(np.abs(matrix).max(1, keepdims=True) / np.float32(127))
        codes = np.rint(matrix / scales).astype(np.int8)
        return QuantTensor(
            codes=codes, bits=8, group=matrix.shape[1], scales=scales,
            activation_bits=scheme.activation_bits, activation_group=scheme.activation_group,
        )  # fmt: skip
    scales, zeros = grid_of(matrix, scheme, name, importance)
    group = scheme.group_of(matrix.shape[1], name)
    codes = np.empty(matrix.shape, np.uint8)
    for rows in _chunks(matrix):
        wide = matrix[rows].reshape(-1, matrix.shape[1] // group, group)
        steps = np.rint(wide / scales[rows, :, None]) + zeros[rows, :, None].astype(np.float32)
        codes[rows] = np.clip(steps, 0, 15).astype(np.uint8).reshape(codes[rows].shape)
    if not scheme.is_asymmetric:
        return QuantTensor(codes=codes, bits=4, group=group, scales=scales, zero=8)
    return QuantTensor(codes=codes, bits=4, group=group, scales=scales, zeros=zeros)


def grid_of(
    matrix: Floats, scheme: Scheme, name: str, importance: Floats | None = None
) -> tuple[Floats, NDArray[np.uint8]]:
    """Scales f32 and zero points uint8, both [O, I / group], of least (weighted) squared error."""
    outputs, inputs = matrix.shape
    group = scheme.group_of(inputs, name)
    weights = np.ones(inputs, np.float32) if importance is None else importance
    weights = weights.reshape(1, -1, group)
    scales = np.empty((outputs, inputs // group), np.float32)
    zeros = np.full(scales.shape, 8, np.uint8)
    for rows in _chunks(matrix):
        wide = matrix[rows].reshape(-1, inputs // group, group)
        scales[rows], zeros[rows] = _search(wide, weights, is_asymmetric=scheme.is_asymmetric)
    return scales, zeros


def _search(
    wide: Floats, weights: Floats, *, is_asymmetric: bool
) -> tuple[Floats, NDArray[np.uint8]]:
    """The best of the tried ranges, for each group of [rows, groups, group]."""
    low = np.minimum(wide.min(-1), 0)
    high = np.maximum(wide.max(-1), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.full(low.shape, 8, np.float32)
    for shrink in SHRINKS:
        if is_asymmetric:
            scale = _round_up(shrink * (high - low) / np.float32(15))
            zero = np.clip(np.rint(-shrink * low / scale), 0, 15)
        else:
            scale = _round_up(shrink * np.maximum(-low, high) / np.float32(7.5))
            zero = np.full_like(low, 8)
        errors = wide / scale[..., None]
        errors -= np.clip(np.rint(errors), -zero[..., None], 15 - zero[..., None])
        errors *= errors
        errors *= weights
        total = errors.sum(-1) * scale * scale
        is_better = total < best
        best = np.where(is_better, total, best)
        scales = np.where(is_better, scale, scales)
        zeros = np.where(is_better, zero, zeros)
    return scales, zeros.astype(np.uint8)


def _fp8(matrix: Floats, scheme: Scheme) -> QuantTensor:
    largest = np.abs(matrix).max(1, keepdims=True)
    if scheme.is_per_tensor:
        largest = np.full_like(largest, largest.max())
    scales = _round_up(largest / np.float32(FP8_MAX))
    codes = (matrix / scales).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return QuantTensor(codes=codes, bits=8, group=matrix.shape[1], kind="fp8", scales=scales)


def _round_up(scales: Any) -> Floats:
    """The next bfloat16 that is not smaller; 1 in place of 0: zeros are exact at any scale."""
    wide = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    bits = wide.view(np.uint32)
    return np.asarray(((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32))


def _chunks(matrix: Floats) -> list[slice]:
    count = max(1, ROWS_BYTES // (4 * matrix.shape[1]))
    return [slice(i, i + count) for i in range(0, matrix.shape[0], count)]


def _check(matrix: Floats, name: str) -> None:
    if matrix.ndim != 2 or not matrix.size:
        raise CheckpointError(f"{name}: a matrix is quantised, its shape is {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise CheckpointError(f"{name}: a weight is not finite.")
