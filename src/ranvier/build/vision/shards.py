"""The encoder over several cores: its towers' heads and MLP are cut where they divide.

Everything else of an encoder (patches, positions, projection) is whole on each core, and so is the
buffer of features; keys and values of tiles lie with their KV heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.nn.vision.tower import Tower
from ranvier.weights.shards.runs import Run, Runs

__all__ = ["Side", "core_vision", "cross_array", "tower_runs"]

OUTPUTS = ("qkv", "up", "gate")
INPUTS = ("o", "down")
Side = Literal["outputs", "inputs"]


def core_vision(vision: VisionSpec, cores: int) -> VisionSpec:
    """The encoder of one of `cores` cores."""
    encoder: Any = vision.encoder
    towers = {name: _core_tower(tower, cores) for name, tower in _towers(encoder).items()}
    fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    changes = {f: towers[v.name] for f, v in fields.items() if isinstance(v, Tower)}
    encoder = dataclasses.replace(encoder, **changes)
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


def tower_runs(
    vision: VisionSpec | None, name: str, cores: int, core: int
) -> tuple[Side, tuple[Runs, ...]] | None:
    """Which side of an array of a tower is cut, and what a core takes of each part; None: all.

    q, k and v may be one part: then it has a run of each.
    """
    tower, part = _part(name)
    whole = None if vision is None else _towers(vision.encoder).get(tower)
    own = None if whole is None else _core_tower(whole, cores)
    if vision is None or own is None or own.cores == 1:
        return None
    kind = part.removesuffix("_bias")
    side: Side = "outputs" if kind in OUTPUTS else "inputs"
    if part not in INPUTS and kind not in OUTPUTS:
        return None
    size = own.heads * own.head_size if kind in ("qkv", "o") else own.intermediate
    if kind != "qkv":
        return side, ((Run(core * size, size),),)
    runs = tuple(Run((i * cores + core) * size, size) for i in range(3))
    is_one = next(len(a.sources[0]) == 1 for a in vision.arrays if a.name == name)
    return side, (runs,) if is_one else ((runs[0],),) * 3


def _towers(encoder: Any) -> dict[str, Tower]:
    """The towers of an encoder by the prefix of their arrays."""
    values = (getattr(encoder, field.name) for field in dataclasses.fields(encoder))
    return {value.name: value for value in values if isinstance(value, Tower)}


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
