"""GGUF's block formats: to QuantTensor at their own width, and to f32.

Source: the formats of ggml (blocks of 32, super-blocks of 256), as the `gguf` package's own numpy
reader gives them bit for bit; the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.weights.quantised import SUPER, QuantTensor, SuperScales

__all__ = ["FORMATS", "Format", "dequantize", "unpack"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCKS_AT_ONCE = 2**14
"""Blocks that are widened to f32 at a time: bounds what dequantising holds beside its result."""


def dequantize(raw: Bytes, kind: int) -> Floats:
    """Flat f32 values of whole blocks of the format FORMATS[kind]."""
    form = FORMATS[kind]
    if form.dtype is not None:
        return np.asarray(np.ascontiguousarray(raw).view(form.dtype), np.float32)
    assert form.unpack is not None
    blocks = raw.reshape(-1, form.bytes)
    out = np.empty((len(blocks), form.block), np.float32)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        out[part] = form.unpack(blocks[part]).values()
    return out.reshape(-1)


def unpack(raw: Bytes, kind: int, rows: int) -> QuantTensor | None:
    """A matrix of `rows` outputs at its own width; None for a format that is not quantised."""
    form = FORMATS[kind]
    if form.unpack is None:
        return None
    return _joined(form.unpack(raw.reshape(-1, form.bytes)), rows)


def _joined(blocks: QuantTensor, rows: int) -> QuantTensor:
    """One tensor whose rows are blocks, as a matrix of `rows` rows."""

    def flat(array: NDArray[Any] | None) -> Any:
        return None if array is None else array.reshape(rows, -1)

    levels = blocks.levels
    if levels is not None:
        levels = SuperScales(
            outer=flat(levels.outer),
            codes=flat(levels.codes),
            least_outer=flat(levels.least_outer),
            least_codes=flat(levels.least_codes),
        )
    return replace(
        blocks,
        codes=flat(blocks.codes),
        scales=flat(blocks.scales),
        offsets=flat(blocks.offsets),
        levels=levels,
    )


def _half(b: Bytes) -> NDArray[np.float16]:
    """A column of float16 [blocks, 1]."""
    return np.ascontiguousarray(b).view(np.float16)


def _float(b: Bytes) -> Floats:
    return _half(b).astype(np.float32)


def _nibbles(b: Bytes) -> Bytes:
    """Low nibbles of all bytes, then high ones."""
    return np.concatenate([b & 15, b >> 4], axis=-1)


def _high_bits(b: Bytes) -> Bytes:
    """The fifth bits of 32 values, from 4 bytes."""
    return np.unpackbits(b, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(b: Bytes) -> QuantTensor:
    return QuantTensor(codes=_nibbles(b[:, 2:]), bits=4, group=32, scales=_float(b[:, :2]), zero=8)


def _q4_1(b: Bytes) -> QuantTensor:
    return QuantTensor(
        codes=_nibbles(b[:, 4:]), bits=4, group=32,
        scales=_float(b[:, :2]), offsets=_float(b[:, 2:4]),
    )  # fmt: skip


def _q5_0(b: Bytes) -> QuantTensor:
    codes = _nibbles(b[:, 6:]) | _high_bits(b[:, 2:6])
    return QuantTensor(codes=codes, bits=5, group=32, scales=_float(b[:, :2]), zero=16)


def _q5_1(b: Bytes) -> QuantTensor:
    codes = _nibbles(b[:, 8:]) | _high_bits(b[:, 4:8])
    return QuantTensor(
        codes=codes, bits=5, group=32, scales=_float(b[:, :2]), offsets=_float(b[:, 2:4])
    )


def _q8_0(b: Bytes) -> QuantTensor:
    codes = np.ascontiguousarray(b[:, 2:]).view(np.int8)
    return QuantTensor(codes=codes, bits=8, group=32, scales=_float(b[:, :2]))


def _levels_k(b: Bytes) -> SuperScales:
    """Two halves, then eight 6-bit scales and minima from 12 bytes."""
    low, high, both = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    codes = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=1)
    least = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=1)
    return SuperScales(
        outer=_half(b[:, :2]),
        codes=codes.view(np.int8),
        least_outer=_half(b[:, 2:4]),
        least_codes=least,
    )


def _q4_k(b: Bytes) -> QuantTensor:
    pairs = b[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    codes = (pairs & 15).reshape(len(b), SUPER)
    return QuantTensor(codes=codes, bits=4, group=32, levels=_levels_k(b))


def _q5_k(b: Bytes) -> QuantTensor:
    pairs = b[:, 48:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    low = (pairs & 15).reshape(-1, 8, 32)
    high = (b[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = (low | (high << 4)).reshape(len(b), SUPER)
    return QuantTensor(codes=codes, bits=5, group=32, levels=_levels_k(b))


def _q6_k(b: Bytes) -> QuantTensor:
    shift = np.array([0, 4], np.uint8)[:, None]
    low = ((b[:, :128].reshape(-1, 2, 1, 64) >> shift) & 15).reshape(-1, 8, 32)
    steps = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((b[:, 128:192].reshape(-1, 2, 1, 32) >> steps) & 3).reshape(-1, 8, 32)
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8)
    levels = SuperScales(outer=_half(b[:, 208:210]), codes=scales)
    codes = (low | (high << 4)).reshape(len(b), SUPER)
    return QuantTensor(codes=codes, bits=6, group=16, levels=levels, zero=32)


@dataclass(frozen=True)
class Format:
    """One format: values and bytes of a block, and its dtype or the decoder of its blocks."""

    name: str
    block: int
    bytes: int
    dtype: Any = None
    unpack: Callable[[Bytes], QuantTensor] | None = None


FORMATS: dict[int, Format] = {
    0: Format("F32", 1, 4, np.float32),
    1: Format("F16", 1, 2, np.float16),
    2: Format("Q4_0", 32, 18, unpack=_q4_0),
    3: Format("Q4_1", 32, 20, unpack=_q4_1),
    6: Format("Q5_0", 32, 22, unpack=_q5_0),
    7: Format("Q5_1", 32, 24, unpack=_q5_1),
    8: Format("Q8_0", 32, 34, unpack=_q8_0),
    12: Format("Q4_K", 256, 144, unpack=_q4_k),
    13: Format("Q5_K", 256, 176, unpack=_q5_k),
    14: Format("Q6_K", 256, 210, unpack=_q6_k),
    30: Format("BF16", 1, 2, ml_dtypes.bfloat16),
}
