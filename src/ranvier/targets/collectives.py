"""What ranks send each other in one step of a decoder: counts and bytes, by kind. Pure arithmetic.

These are the collectives of nn/shards, nn/stream and nn/sample_rows; tests count those of lowered
programs. Pictures, adapters and drafters add their own, which are not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ranvier.core.limits import LIMITS
from ranvier.core.program import ProgramShape
from ranvier.targets.axes import Axes
from ranvier.targets.numbers import ModelNumbers

__all__ = ["FORMULA", "KINDS", "Collective", "step_collectives"]

Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute"]
KINDS: tuple[Kind, ...] = (
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute",
)  # fmt: skip
FORMULA = (
    "bytes that one core sends in a step, as a ring of n cores does: all-reduce 2 (n-1)/n of the "
    "array, reduce-scatter, all-gather and all-to-all (n-1)/n of the whole one, permute all of it"
)
WIDE = 4
"""Bytes of f32 and int32."""


@dataclass(frozen=True)
class Collective:
    """`count` calls of one kind in a step, among `ranks`.

    `bytes` is one call's array: the larger one of operand and result.
    """

    kind: Kind
    count: int
    bytes: int
    ranks: int

    @property
    def sent_bytes(self) -> int:
        """Of one rank in the whole step."""
        if self.kind == "collective_permute":
            return self.count * self.bytes
        passes = 2 if self.kind == "all_reduce" else 1
        return self.count * passes * self.bytes * (self.ranks - 1) // self.ranks


def step_collectives(
    model: ModelNumbers, shape: ProgramShape, tensor: int, axes: Axes, activation_bytes: int
) -> tuple[Collective, ...]:
    """Those of one program, for any one rank; `activation_bytes` of an element between linears.

    A rank runs the layers of every stage's turn with its own: they count whatever it holds.
    """
    stages, ranks = axes.stages, tensor * axes.stages
    if ranks == 1:
        return ()
    is_cut = _is_cut(shape, tensor, axes)
    stream = shape.tokens * model.hidden * WIDE
    own = stream // tensor if is_cut else stream
    found: list[Collective] = []
    if is_cut:
        found.append(Collective("reduce_scatter", 1 + 2 * model.layers, stream, tensor))
        gathered = shape.tokens * model.hidden * activation_bytes
        found.append(Collective("all_gather", 2 * model.layers, gathered, tensor))
        rows = shape.samples * model.hidden * WIDE
        found.append(Collective("all_reduce", 1, rows, tensor))
    else:
        found.append(Collective("all_reduce", 1, stream, ranks))
        if tensor > 1:
            found.append(Collective("all_reduce", 2 * model.layers, stream, tensor))
    if stages > 1:
        found.append(Collective("collective_permute", stages, own, stages))
        # The last stage's stream goes to all; cut, the embeddings are summed over stages too.
        found.append(Collective("all_reduce", 2 if is_cut else 1, own, stages))
    return (*found, *_sampling(model, shape.samples, ranks))


def _sampling(model: ModelNumbers, samples: int, ranks: int) -> tuple[Collective, ...]:
    """Rows of logits change places, what is drawn is gathered."""
    rows = math.ceil(samples / ranks) * ranks
    width = math.ceil(model.vocab_size / ranks)
    columns = 3 + 2 * LIMITS.logprobs_max
    return (
        Collective("all_to_all", 1, rows * width * WIDE, ranks),
        Collective("all_gather", 1, rows * columns * WIDE, ranks),
    )


def _is_cut(shape: ProgramShape, tensor: int, axes: Axes) -> bool:
    """As build/programs decides it."""
    is_large = shape.family != "decode" and shape.tokens % tensor == 0
    return axes.is_sequence and tensor > 1 and is_large
