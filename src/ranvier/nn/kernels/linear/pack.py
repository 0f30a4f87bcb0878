"""Put logical weights [L, O, I] into the form that a target's kernels read. numpy only."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "pack_layer", "packed_shape"]

DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def packed_shape(shape: tuple[int, ...], dtype: str, kernels: str) -> tuple[int, ...]:
    """Shape of the packed stack of logical shape [L, O, I]."""
    layers, outputs, inputs = shape
    if kernels == "reference":
        return (layers, inputs, outputs)
    tiles, depth = -(-outputs // 32) * 2, -(-inputs // 32) * 32
    if dtype == "bfloat16":
        return (layers, tiles, depth // 2, 16, 2)
    return (layers, tiles, depth, 16)


def pack_layer(
    parts: list[NDArray[Any]], *, is_gated: bool, dtype: str, kernels: str
) -> NDArray[Any]:
    """Pack one layer: parts [O_i, I] are concatenated along O; gated: gate, then up."""
    if kernels == "reference":
        return np.concatenate(parts).astype(DTYPES[dtype]).T
    if is_gated:
        whole = _interleave(parts[0], parts[1])
    else:
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return _tile(whole.astype(DTYPES[dtype]), dtype)


def _interleave(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
    """Tiles of 16 outputs in turn: gate, up, gate, up."""
    outputs, inputs = gate.shape
    padded = -(-outputs // 16) * 16
    both = np.zeros((padded // 16, 2, 16, inputs), gate.dtype)
    for i, part in enumerate((gate, up)):
        rows = np.zeros((padded, inputs), gate.dtype)
        rows[:outputs] = part
        both[:, i] = rows.reshape(-1, 16, inputs)
    return both.reshape(2 * padded, inputs)


def _tile(whole: NDArray[Any], dtype: str) -> NDArray[Any]:
    """[O, I] to [O/16, I/2, 16, 2] in bf16, [O/16, I, 16] in f32, zero padded to 32 x 32."""
    outputs, inputs = whole.shape
    padded = np.zeros((-(-outputs // 32) * 32, -(-inputs // 32) * 32), whole.dtype)
    padded[:outputs, :inputs] = whole
    if dtype == "bfloat16":
        pairs = padded.view(np.uint32).reshape(padded.shape[0] // 16, 16, -1)
        tiles = np.ascontiguousarray(pairs.transpose(0, 2, 1))
        halves: NDArray[Any] = tiles.view(ml_dtypes.bfloat16)
        return halves.reshape(*tiles.shape, 2)
    return np.ascontiguousarray(padded.reshape(padded.shape[0] // 16, 16, -1).transpose(0, 2, 1))
