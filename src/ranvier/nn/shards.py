"""A decoder over several ranks: its collectives, and the way of tokens through pipeline stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["AXES", "Shards"]

AXES = ("pp", "tp")
"""The axes of the mesh: pipeline stages, and cores that share a stage's layers."""


@dataclass(frozen=True)
class Shards:
    """The decoder is one rank's part of a model: its numbers are the rank's own.

    weights["rank"] int32 [1] is the rank's place, counted stage by stage. `vocab_size` is the whole
    model's; each rank has an equal part, the last ones padded.
    """

    vocab_size: int
    tensor: int = 1
    pipeline: int = 1
    is_sequence: bool = False
    """The residual stream is cut along its tokens (nn/stream.py)."""

    def look_up(
        self, embed: Callable[[Array], Array], ids_T: Array, rows: int, rank: Array
    ) -> Array:
        """embed(ids) of the ids among the rank's own `rows`, else zeros: a term of the sum."""
        ids_T = ids_T - rank[0] * rows
        own_T = jnp.clip(ids_T, 0, rows - 1)
        return jnp.where((ids_T == own_T)[:, None], embed(own_T), 0.0)

    def sum(self, x: Array) -> Array:
        """The sum over the cores of a stage."""
        return x if self.tensor == 1 else _sum(x, AXES[1])

    def sum_all(self, x: Array) -> Array:
        """The sum over all ranks."""
        return _sum(x, AXES)

    def sum_stages(self, x: Array) -> Array:
        """The sum over the stages."""
        return x if self.pipeline == 1 else _sum(x, AXES[0])

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    def exchange_rows(self, logits_RW: Array, each: int) -> Array:
        """All columns of a rank's `each` rows, of its own columns of all rows: [each, V]."""
        spare = self.ranks * each - logits_RW.shape[0]
        padded_RW = jnp.pad(logits_RW, ((0, spare), (0, 0)))
        exchange: Any = lax.all_to_all
        whole_EV: Array = exchange(padded_RW, AXES, 0, 1, tiled=True)
        return whole_EV[:, : self.vocab_size]

    def gather_rows(self, x_EC: Array) -> Array:
        """The rows of all ranks, on every rank."""
        whole_RC: Array = lax.all_gather(x_EC, AXES, axis=0, tiled=True)
        return whole_RC

    def relay(
        self,
        run: Callable[[Any, Array], Any],
        weights: Mapping[str, Array],
        carry: tuple[Array, ...],
        meta: Array,
    ) -> tuple[Array, ...]:
        """run(carry, meta) on each stage in turn; x, the first of carry, goes on to the next.

        The stages whose turn it is not run on the metadata of an empty step: what they write goes
        to the garbage block. Returns carry, x being that of the last stage on every rank.
        """
        if self.pipeline == 1:
            return tuple(run(carry, meta))
        own = weights["rank"][0] // self.tensor
        ring = [(stage, (stage + 1) % self.pipeline) for stage in range(self.pipeline)]

        def turn(carry: tuple[Array, ...], stage: Array) -> tuple[tuple[Array, ...], None]:
            x, *others = run(carry, jnp.where(own == stage, meta, 0))
            moved: Array = lax.ppermute(x, AXES[0], ring)  # type: ignore[no-untyped-call]
            return (moved, *others), None

        (x, *others), _ = lax.scan(turn, carry, jnp.arange(self.pipeline, dtype=jnp.int32))
        # The last stage's x has come round to the first.
        return _sum(jnp.where(own == 0, x, 0.0), AXES[0]), *others


def _sum(x: Array, axes: str | tuple[str, ...]) -> Array:
    summed: Array = lax.psum(x, axes)  # type: ignore[no-untyped-call]
    return summed
