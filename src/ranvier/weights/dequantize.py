"""GGUF's block formats to f32, vectorised.

Source: the formats of ggml (blocks of 32, super-blocks of 256), as the `gguf` package's own numpy
reader gives them bit for bit; the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMATS", "Format", "dequantize"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(raw: Bytes, kind: int) -> Floats:
    """Flat f32 values of whole blocks of the format FORMATS[kind]."""
    form = FORMATS[kind]
    return form.decode(raw.reshape(-1, form.bytes)).reshape(-1)


def _plain(dtype: Any) -> Callable[[Bytes], Floats]:
    return lambda b: np.ascontiguousarray(b).view(dtype).astype(np.float32)


def _half(b: Bytes) -> Floats:
    """A column of float16 as f32 [blocks, 1]."""
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _nibbles(b: Bytes) -> Bytes:
    """Low nibbles of all bytes, then high ones."""
    return np.concatenate([b & 15, b >> 4], axis=-1)


def _high_bits(b: Bytes) -> Bytes:
    """The fifth bits of 32 values, from 4 bytes."""
    return np.unpackbits(b, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(b: Bytes) -> Floats:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(b: Bytes) -> Floats:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


def _q5_0(b: Bytes) -> Floats:
    values = (_nibbles(b[:, 6:]) | _high_bits(b[:, 2:6])).astype(np.int8) - 16
    return _half(b[:, :2]) * values.astype(np.float32)


def _q5_1(b: Bytes) -> Floats:
    values = _nibbles(b[:, 8:]) | _high_bits(b[:, 4:8])
    return _half(b[:, :2]) * values.astype(np.float32) + _half(b[:, 2:4])


def _q8_0(b: Bytes) -> Floats:
    return _half(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)


def _scales_k(b: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and mins from 12 bytes."""
    low, high, both = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _super(b: Bytes, values: Floats) -> Floats:
    """d * scale * value - dmin * min over eight groups of 32."""
    scales, mins = _scales_k(b[:, 4:16])
    d = (_half(b[:, :2]) * scales)[:, :, None]
    least = (_half(b[:, 2:4]) * mins)[:, :, None]
    return (d * values - least).reshape(len(b), 256)


def _q4_k(b: Bytes) -> Floats:
    pairs = b[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    return _super(b, (pairs & 15).reshape(-1, 8, 32).astype(np.float32))


def _q5_k(b: Bytes) -> Floats:
    pairs = b[:, 48:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    low = (pairs & 15).reshape(-1, 8, 32)
    high = (b[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _super(b, (low | (high << 4)).astype(np.float32))


def _q6_k(b: Bytes) -> Floats:
    shift = np.array([0, 4], np.uint8)[:, None]
    low = ((b[:, :128].reshape(-1, 2, 1, 64) >> shift) & 15).reshape(-1, 8, 32)
    steps = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((b[:, 128:192].reshape(-1, 2, 1, 32) >> steps) & 3).reshape(-1, 8, 32)
    values = (low | (high << 4)).astype(np.int8) - 32
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    d = (_half(b[:, 208:210]) * scales)[:, :, None]
    return (d * values.reshape(-1, 16, 16).astype(np.float32)).reshape(len(b), 256)


@dataclass(frozen=True)
class Format:
    """One format: values and bytes of a block, and its decoder."""

    name: str
    block: int
    bytes: int
    decode: Callable[[Bytes], Floats]


FORMATS: dict[int, Format] = {
    0: Format("F32", 1, 4, _plain(np.float32)),
    1: Format("F16", 1, 2, _plain(np.float16)),
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    6: Format("Q5_0", 32, 22, _q5_0),
    7: Format("Q5_1", 32, 24, _q5_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    12: Format("Q4_K", 256, 144, _q4_k),
    13: Format("Q5_K", 256, 176, _q5_k),
    14: Format("Q6_K", 256, 210, _q6_k),
    30: Format("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}
