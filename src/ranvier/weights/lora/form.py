"""AdapterForm: what an adapter must look like to fit the slots of one artifact.

The build writes it into the manifest, the reader of adapters takes it from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ranvier.weights.shards.runs import Runs

__all__ = [
    "BLOB",
    "LINE_BYTES",
    "TABLE",
    "AdapterCut",
    "AdapterForm",
    "AdapterModule",
    "form_of",
    "rank_padded",
    "stack_bytes",
    "stack_shapes",
]

LINE_BYTES = 64
"""Places in a CPU slot are counted in lines: 16 f32, or 16 pairs of bf16."""
LANES = 16
DEPTH = 32
"""Inputs are padded to it, as those of the linear kernels."""
RANK = 8
"""Ranks are padded to it."""
PAGE_BYTES = 2**20
"""What one piece of a CPU slot moves."""
TABLE = "lora.table"
BLOB = "lora.blob"


@dataclass(frozen=True)
class AdapterCut:
    """How cores share a linear: the outputs (rows of B) or inputs (columns of A) of each core.

    `size` is that side's in the checkpoint; the other side is whole on every core.
    """

    side: Literal["outputs", "inputs"]
    size: int
    cores: tuple[Runs, ...]


@dataclass(frozen=True)
class AdapterModule:
    """One linear of every layer, by its name in the checkpoint: "model.layers.{}.mlp.up_proj".

    The kernels see it as outputs start .. start+outputs of the fused `linear`. Its numbers are
    those of one core.
    """

    name: str
    linear: str
    inputs: int
    outputs: int
    start: int
    cut: AdapterCut | None = None
    numbers: tuple[int, ...] = ()
    """Of the layers in the checkpoint, where others lie among them (Llama 3.2 Vision)."""

    def name_at(self, layer: int) -> str:
        """The checkpoint's name of it in a layer."""
        return self.name.format(self.numbers[layer] if self.numbers else layer)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) in the checkpoint."""
        cut = self.cut
        if cut is None:
            return self.outputs, self.inputs
        return (cut.size, self.inputs) if cut.side == "outputs" else (self.outputs, cut.size)

    @property
    def lane(self) -> int:
        """Where it begins within a tile of 16 outputs; gate and up have tiles of their own."""
        return 0 if self.linear == "gate_up" else self.start % LANES

    @property
    def tiles(self) -> int:
        """Tiles of 16 outputs of the fused linear that it touches."""
        return -(-(self.lane + self.outputs) // LANES)


@dataclass(frozen=True)
class AdapterForm:
    """The slots of an artifact: how many, of which rank, for which modules, for which kernels.

    Of a model that `cores` share in each of `stages`: what one of them has; `layers` is a stage's.
    """

    kernels: str
    dtype: str
    layers: int
    slots: int
    rank_max: int
    modules: tuple[AdapterModule, ...]
    cores: int = 1
    stages: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every linear that can have an adapter, by its whole name."""
        layers = range(self.layers * self.stages)
        return {module.name_at(i): module.shape for module in self.modules for i in layers}

    @property
    def line(self) -> int:
        """Inputs (or ranks) of 16 lanes in one line."""
        return 2 if self.dtype == "bfloat16" else 1

    def lines(self, module: AdapterModule, rank: int) -> tuple[int, int]:
        """Lines of A and of B of one layer's module in a CPU slot."""
        depth = -(-module.inputs // DEPTH) * DEPTH
        a = -(-rank // LANES) * depth // self.line
        return a, module.tiles * rank_padded(rank) // self.line

    @property
    def slot_lines(self) -> int:
        """Lines of a CPU slot when every module has the largest rank."""
        return self.layers * sum(sum(self.lines(m, self.rank_max)) for m in self.modules)


def rank_padded(rank: int) -> int:
    """The rank as it is stored."""
    return -(-rank // RANK) * RANK


def form_of(model: Mapping[str, Any]) -> AdapterForm | None:
    """The form in a manifest's `model`; None: the artifact has no slots."""
    fields = model.get("adapters")
    return msgspec.convert(fields, AdapterForm) if fields else None


def stack_shapes(form: AdapterForm) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of what all slots take on one device; [slots, pieces, ...].

    The CPU kernels have one run of lines a slot, in pages, and a table of what lies where; the
    reference has, for every fused linear, A [S, L, I, ranks of its modules] and B [S, L, R, O].
    """
    if form.kernels == "cpu":
        slot = form.slot_lines * LINE_BYTES
        page = min(PAGE_BYTES, -(-slot // LINE_BYTES) * LINE_BYTES)
        width = page // (4 // form.line)
        return {
            BLOB: ((form.slots, -(-slot // page), width), form.dtype),
            TABLE: ((form.slots, form.layers, len(form.modules), 3), "int32"),
        }
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for linear in dict.fromkeys(module.linear for module in form.modules):
        parts = [module for module in form.modules if module.linear == linear]
        top = (form.slots, form.layers)
        ranks, outputs = len(parts) * form.rank_max, sum(part.outputs for part in parts)
        shapes[f"lora.{linear}.a"] = ((*top, parts[0].inputs, ranks), form.dtype)
        shapes[f"lora.{linear}.b"] = ((*top, form.rank_max, outputs), form.dtype)
    return shapes


def stack_bytes(form: AdapterForm) -> int:
    """What all slots take on one device."""
    shapes = stack_shapes(form).values()
    return sum(math.prod(shape) * (2 if kind == "bfloat16" else 4) for shape, kind in shapes)
