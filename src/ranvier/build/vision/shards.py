"""The encoder over several cores: its towers' heads and MLP are cut where they divide.

Everything else of an encoder (patches, positions, projection) is whole on each core, and so is the
buffer of features; keys and values of tiles lie with their KV heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.nn.vision.tower import Tower

__all__ = ["STATE_HEADS", "core_vision", "cross_array", "split_axis"]

STATE_HEADS = 3
"""The axis of cross_k and cross_v that is cut."""
OUTPUTS = ("qkv", "up", "gate")
INPUTS = ("o", "down")
CROSS = {"cross_q": 2, "cross_o": 1, "cross_gate_up": 2, "cross_down": 1, "vision.cross_kv": 2}
"""Which axis of a weight [L, I, O] of the layers that attend to tiles is cut."""


def core_vision(vision: VisionSpec, cores: int) -> VisionSpec:
    """The encoder of one of `cores` cores."""
    encoder: Any = vision.encoder
    changes = {field: _core_tower(tower, cores) for field, tower in _towers(encoder).items()}
    encoder = dataclasses.replace(encoder, **changes)
    towers = {tower.name: tower for tower in changes.values()}
    arrays = tuple(_array(array, towers) for array in vision.arrays)
    return dataclasses.replace(vision, encoder=encoder, arrays=arrays)


def cross_array(own: DecoderSpec, array: ArraySpec) -> ArraySpec:
    """A weight of the layers that attend to tiles, at the sizes of a core's text side."""
    heads, kv = own.heads * own.head_size, own.kv_heads * own.head_size
    outputs = {
        "cross_q": heads, "vision.cross_kv": 2 * kv, "cross_gate_up": 2 * own.intermediate,
    }  # fmt: skip
    inputs = {"cross_o": heads, "cross_down": own.intermediate}
    shape = list(array.shape)
    if array.name in outputs:
        shape[1] = outputs[array.name]
    if array.name in inputs:
        shape[2] = inputs[array.name]
    return dataclasses.replace(array, shape=tuple(shape))


def split_axis(name: str, vision: VisionSpec | None) -> int | None:
    """The axis of a packed weight [L, I, O] or bias [L, O] that is cut over cores; None: whole."""
    if name in CROSS:
        return CROSS[name]
    tower, part = _part(name)
    if vision is None or not _is_cut(vision, tower):
        return None
    if part.removesuffix("_bias") in OUTPUTS:
        return 1 if part.endswith("_bias") else 2
    return 1 if part in INPUTS else None


def _towers(encoder: Any) -> dict[str, Tower]:
    """The towers of an encoder by its fields."""
    values = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    return {name: value for name, value in values.items() if isinstance(value, Tower)}


def _is_cut(vision: VisionSpec, name: str) -> bool:
    return any(t.name == name and t.cores > 1 for t in _towers(vision.encoder).values())


def _core_tower(tower: Tower, cores: int) -> Tower:
    if tower.heads % cores or tower.intermediate % cores:
        return tower
    return dataclasses.replace(
        tower, heads=tower.heads // cores, intermediate=tower.intermediate // cores, cores=cores
    )


def _array(array: ArraySpec, towers: dict[str, Tower]) -> ArraySpec:
    tower, part = _part(array.name)
    if tower not in towers or towers[tower].cores == 1:
        return array
    at = None
    if part.removesuffix("_bias") in OUTPUTS:
        at = 1
    elif part in INPUTS:
        at = 2
    shape = (n // towers[tower].cores if i == at else n for i, n in enumerate(array.shape))
    return dataclasses.replace(array, shape=tuple(shape))


def _part(name: str) -> tuple[str, str]:
    """(tower, part of a block) of an array's name."""
    tower, _, part = name.rpartition(".")
    return tower, part
