"""What LoRA adapters add to a linear: their slots' weights, and which row goes through which.

Part of the linear kernels, since an adapter's input is the linear's own, normed, and its output is
added before the activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jax import Array

__all__ = ["Lora", "LoraPart", "lora_of"]


@dataclass(frozen=True)
class LoraPart:
    """One of the linears in a fused one: its row of the table, and its outputs in the whole."""

    index: int
    start: int
    outputs: int


@dataclass(frozen=True)
class Lora:
    """The adapters of one fused linear.

    Shapes: slots [T] int32, 0 for rows without an adapter, else the adapter's place + 1. `a` and
    `b` for the CPU kernels: the slots' runs and their table; for the reference A [S, L, I, ranks of
    the parts] and B [S, L, R, outputs of the parts] (weights/lora/form.py).
    """

    slots_T: Array
    a: Array
    b: Array
    parts: tuple[LoraPart, ...]


def lora_of(
    weights: Mapping[str, Array], linear: str, slots_T: Array, parts: tuple[LoraPart, ...]
) -> Lora:
    """The adapters of a fused linear among a program's weights, in either form."""
    if "lora.blob" in weights:
        return Lora(slots_T, weights["lora.blob"], weights["lora.table"], parts)
    return Lora(slots_T, weights[f"lora.{linear}.a"], weights[f"lora.{linear}.b"], parts)
