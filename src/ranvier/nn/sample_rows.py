"""Sampling where the vocabulary is cut over ranks: each rank takes whole rows of some samples.

An exchange turns every rank's columns of all rows into all columns of its share of the rows, which
the target's own sampler then draws. So no rank holds the logits of more than its share, and every
parameter means what it means on one rank, whatever it looks at: a total over the vocabulary costs
no further collective. Only the drawn entries are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from ranvier.core.layout import FLOAT_FIELDS, MetaLayout
from ranvier.nn.draft import pack_meta
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.shards import Shards

__all__ = ["RowSampler", "sampler_of"]

FIELDS = ("top_k", "logprob_counts", "target_ids", "edit_counts", "flags", *FLOAT_FIELDS)
"""Of the metadata, what a sampler reads of each row."""


@dataclass(frozen=True)
class RowSampler:
    """A sampler of the ranks' parts of the logits, called as the target's own (Kernels.sample).

    `inner` is the target's sampler, `rank` int32 [1] as in Shards.
    """

    inner: Callable[..., Array]
    shards: Shards
    rank: Array

    def __call__(
        self,
        logits_RW: Array,
        meta: Array,
        layout: MetaLayout,
        edits: Array,
        allowed: Array,
        *,
        top_count: int,
    ) -> Array:
        """As Kernels.sample of the whole logits; every rank returns all rows.

        Shapes: logits [R, W], W the rank's part of the vocabulary.
        Cost: sends and receives ceil(R / ranks) rows of whole logits, then R rows of the output.
        """
        rows = logits_RW.shape[0]
        each = -(-rows // self.shards.ranks)
        first = self.rank[0] * each
        # Rows past the last are that one again: in range, drawn for nothing, and cut off below.
        own_E = jnp.minimum(first + jnp.arange(each, dtype=jnp.int32), rows - 1)

        def take(x: Array) -> Array:
            taken: Array = x.at[own_E].get(mode="promise_in_bounds")
            return taken

        live = jnp.clip(meta[2] - first, 0, each)
        fields = {name: take(meta[layout.slices[name]]) for name in FIELDS}
        fields["counts"] = jnp.stack([live, live, live, jnp.zeros_like(live)])
        own = MetaLayout(tokens=0, rows=each, blocks=0)
        logits_EV = self.shards.exchange_rows(logits_RW, each)
        drawn = self.inner(
            logits_EV, pack_meta(own, fields), own, take(edits), take(allowed), top_count=top_count
        )
        return self.shards.gather_rows(drawn)[:rows]


def sampler_of(
    kernels: Kernels, shards: Shards | None, weights: Mapping[str, Array]
) -> Callable[..., Array]:
    """What samples the logits that each rank has a part of; of one rank the target's own."""
    if shards is None:
        return kernels.sample
    return RowSampler(kernels.sample, shards, weights["rank"])
