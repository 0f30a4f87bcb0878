"""Linear and gated linear: reference and targets, and the packing of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jax import Array

__all__ = ["Quantised", "Weight", "weight_of"]


class Quantised(NamedTuple):
    """A stack of whole-number weights in the CPU kernel's bytes (csrc/quant.h).

    Shapes: blob uint8 [bytes]; table int32 [L, S, 4].
    """

    blob: Array
    table: Array


Weight = Array | Quantised


def weight_of(weights: Mapping[str, Array], name: str) -> Weight:
    """The stack of a name, dense or quantised: `name`, or `name.blob` and `name.table`."""
    if name in weights:
        return weights[name]
    return Quantised(weights[f"{name}.blob"], weights[f"{name}.table"])
