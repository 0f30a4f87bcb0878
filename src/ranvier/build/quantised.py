"""Pack quantised matrices into the bytes that the CPU kernel reads (csrc/quant.h). numpy only.

A stack becomes one run of bytes and a table [L, S, 4] of its segments: format, inputs of a group,
tiles of 16 outputs, offset in 64 bytes. Layers may differ in format; so may the parts of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantised import SUPER, QuantTensor

__all__ = ["PackedStack", "StackPacker", "is_packable", "pack_stack"]

Bytes = NDArray[np.uint8]
LANES, UNIT, LINE = 16, 32, 64
STEPS = 8
"""Of four inputs, in a unit."""
SEGMENTS_MAX = 4
HALF_ERROR = 2.0**-10
"""How far a scale may move, relatively, when it becomes a float16."""

(I8, I8D, Q8, Q4, Q4_ZERO, Q4_ADD, Q5, Q5_ADD, K4, K5, K6, F8, F8_GROUP, F8_BLOCK, I8G) = range(15)
ZEROS = {4: 8, 5: 16, 6: 32, 8: 0}
"""The code of value 0 in formats that have one for all."""


@dataclass(frozen=True)
class PackedStack:
    """Shapes: blob uint8 [bytes], table int32 [L, S, 4]."""

    blob: Bytes
    table: NDArray[np.int32]


def is_packable(tensor: QuantTensor) -> bool:
    """Whether the kernel has a format for a matrix."""
    return _format(tensor) is not None


def pack_stack(
    layers: list[list[QuantTensor]], name: str, *, is_gated: bool = False
) -> PackedStack:
    """Pack the parts of each layer, in order (gated: gate, then up). Raises CheckpointError."""
    packer = StackPacker(name, is_gated=is_gated)
    for parts in layers:
        packer.add(parts)
    return packer.finish()


class StackPacker:
    """Packs a stack layer by layer, so that one layer of codes is in memory at a time."""

    def __init__(self, name: str, *, is_gated: bool = False) -> None:
        self._name = name
        self._is_gated = is_gated
        self._rows: list[list[tuple[int, int, int, int]]] = []
        self._pieces: list[Bytes] = []
        self._offset = 0

    def add(self, parts: list[QuantTensor]) -> None:
        """The parts of the next layer, in order. Raises CheckpointError."""
        assert len(parts) <= SEGMENTS_MAX, self._name
        self._rows.append([])
        for index, tensor in enumerate(parts):
            tensor.check(self._name)
            if not self._is_gated and index + 1 < len(parts) and tensor.shape[0] % LANES:
                raise CheckpointError(
                    f"{self._name}: a part has {tensor.shape[0]} outputs, "
                    f"not a multiple of {LANES}."
                )
            kind, tiles = _format(tensor), pack_tiles(tensor)
            assert kind is not None
            group = tensor.group if kind not in (I8, I8D, I8G, F8) else 0
            self._rows[-1].append((kind, group, len(tiles), self._offset // LINE))
            self._pieces.append(tiles.reshape(-1))
            self._offset += tiles.size

    def finish(self) -> PackedStack:
        """The whole stack. Raises CheckpointError when it is larger than offsets can say."""
        if self._offset // LINE >= 2**31:
            raise CheckpointError(
                f"{self._name}: {self._offset} bytes are more than one packed stack can hold."
            )
        segments = max(map(len, self._rows))
        table = np.zeros((len(self._rows), segments, 4), np.int32)
        for layer, row in enumerate(self._rows):
            table[layer, : len(row)] = row
        return PackedStack(np.concatenate(self._pieces), table)


def pack_tiles(tensor: QuantTensor) -> Bytes:
    """[tiles, bytes of a tile]: headers of all blocks, padded to whole lines, then codes."""
    kind = _format(tensor)
    assert kind is not None
    codes = _padded(tensor.codes)
    units = _pairs(codes) if tensor.kind == "fp8" else _units(codes, tensor.bits)
    header = _header(tensor, kind).reshape(len(codes), -1)
    header = np.pad(header, ((0, 0), (0, -header.shape[1] % LINE)))
    return np.concatenate([header, units.reshape(len(codes), -1)], axis=1)


def _format(tensor: QuantTensor) -> int | None:
    if tensor.kind == "fp8":
        return _fp8_format(tensor)
    if tensor.levels is not None:
        return {4: K4, 5: K5, 6: K6}.get(tensor.bits)
    is_plain = tensor.zeros is None and tensor.offsets is None
    if tensor.bits == 8 and tensor.group == tensor.shape[1] and is_plain:
        if tensor.activation_bits == 16:
            return I8
        return I8G if tensor.activation_group else I8D
    if tensor.group % UNIT or not _fits_half(tensor):
        return None
    if tensor.bits == 4 and tensor.zeros is not None:
        return Q4_ZERO
    if tensor.offsets is not None:
        return {4: Q4_ADD, 5: Q5_ADD}.get(tensor.bits)
    plain = {4: Q4, 5: Q5, 8: Q8}.get(tensor.bits)
    return plain if is_plain and tensor.zero == ZEROS[tensor.bits] else None


def _fp8_format(tensor: QuantTensor) -> int | None:
    if tensor.group == tensor.shape[1]:
        return F8
    if tensor.group % UNIT:
        return None
    assert tensor.scales is not None
    tiles = np.pad(tensor.scales, ((0, -tensor.shape[0] % LANES), (0, 0)), "edge")
    tiles = tiles.reshape(-1, LANES, tiles.shape[1])
    return F8_BLOCK if (tiles == tiles[:, :1]).all() else F8_GROUP


def _fits_half(tensor: QuantTensor) -> bool:
    """Whether scales and offsets survive as float16."""
    for values in (tensor.scales, tensor.offsets):
        if values is None:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16).astype(np.float32)
        if not (np.abs(halves - values) <= HALF_ERROR * np.abs(values)).all():
            return False
    return True


def _padded(codes: NDArray[Any]) -> NDArray[Any]:
    """[tiles, 16, inputs], with 0 for what is not there."""
    outputs, inputs = codes.shape
    padded = np.pad(codes, ((0, -outputs % LANES), (0, -inputs % UNIT)))
    return padded.reshape(-1, LANES, padded.shape[1])


def _units(codes: NDArray[Any], bits: int) -> Bytes:
    """[tiles, units, bytes] of codes by units of 32 inputs."""
    tiles, _, depth = codes.shape
    order = codes.reshape(tiles, LANES, depth // UNIT, STEPS, 4).transpose(0, 2, 3, 1, 4)
    steps: Bytes = np.ascontiguousarray(order).view(np.uint8)
    if bits == 8:
        return np.bitwise_xor(steps, np.uint8(128)).reshape(tiles, depth // UNIT, -1)
    planes = [_gather(np.bitwise_and(steps, np.uint8(15)), 4)]
    if bits > 4:
        planes.append(_gather(np.right_shift(steps, np.uint8(4)), bits - 4))
    return np.concatenate(planes, axis=2)


def _pairs(codes: NDArray[np.uint8]) -> Bytes:
    """[tiles, units, bytes] of e4m3 codes: of four inputs the first two are words' low bytes."""
    tiles, _, depth = codes.shape
    steps = codes.reshape(tiles, LANES, depth // UNIT, STEPS, 2, 2).transpose(0, 2, 3, 1, 5, 4)
    return np.ascontiguousarray(steps).reshape(tiles, depth // UNIT, -1)


def _gather(steps: Bytes, bits: int) -> Bytes:
    """8 / bits steps into each line of bytes, the first lowest: [tiles, units, bytes]."""
    each = 8 // bits
    tiles, units = steps.shape[:2]
    parts = steps.reshape(tiles, units, STEPS // each, each, LANES, 4)
    shifts = (bits * np.arange(each, dtype=np.uint8)).reshape(-1, 1, 1)
    whole: Bytes = np.bitwise_or.reduce(parts << shifts, axis=3)
    return whole.reshape(tiles, units, -1)


def _header(tensor: QuantTensor, kind: int) -> Bytes:
    """[tiles, blocks, bytes]."""
    levels = tensor.levels
    if kind in (I8, I8D, I8G, F8, F8_GROUP, F8_BLOCK):
        assert tensor.scales is not None
        scales = tensor.scales[::LANES] if kind == F8_BLOCK else tensor.scales
        return _lanes(scales.astype("<f4"), 1 if kind == F8_BLOCK else LANES)
    if levels is None:
        assert tensor.scales is not None
        rows = [_lanes(tensor.scales.astype("<f2"))]
        if kind == Q4_ZERO:
            assert tensor.zeros is not None
            rows.append(_lanes(tensor.zeros))
        if kind in (Q4_ADD, Q5_ADD):
            assert tensor.offsets is not None
            rows.append(_lanes(tensor.offsets.astype("<f2")))
        return np.concatenate(rows, axis=2)
    rows, each = [_lanes(levels.outer.astype("<f2"))], SUPER // tensor.group
    if kind in (K4, K5):
        assert levels.least_outer is not None and levels.least_codes is not None
        rows += [_lanes(levels.least_outer.astype("<f2")), _grouped(levels.codes, each)]
        rows.append(_grouped(levels.least_codes, each))
    else:
        rows.append(_grouped(levels.codes, each))
    return np.concatenate(rows, axis=2)


def _lanes(values: NDArray[Any], lanes: int = LANES) -> Bytes:
    """[O, blocks] to [tiles, blocks, bytes of 16 lanes]."""
    padded = np.pad(values, ((0, -values.shape[0] % lanes), (0, 0)))
    tiles = padded.reshape(-1, lanes, values.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(len(tiles), values.shape[1], -1)


def _grouped(codes: NDArray[Any], each: int) -> Bytes:
    """[O, groups] to [tiles, blocks, `each` groups of a block x 16 lanes]."""
    lanes = _lanes(codes.view(np.uint8))
    return lanes.reshape(len(lanes), -1, each * LANES)
