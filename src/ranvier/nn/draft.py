"""The seam between a target's step and a drafter, and what every drafter needs.

A drafter only guesses. Each token of the target is a function of the target's own logits and of a
uniform number keyed by the position, so a guess decides how many tokens a step yields, never which.
A drafter's caches lie in the same blocks as the target's: whatever happens to a block happens to
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from ranvier.core.layout import MetaLayout

__all__ = ["PREFIX", "Drafter", "Verified", "pack_meta", "verify"]

PREFIX = "draft."
"""Of the names of a drafter's weights and state."""
PARAMETERS = ("top_k", "temperature", "top_p", "min_p")


@dataclass(frozen=True)
class Verified:
    """What a drafter sees of a step of the target.

    ids: the tokens; next: the token that follows each, sampled or known; tip: the index of the last
    token that stands, so next[tip] is each sequence's newest token, at positions[tip] + 1;
    accepted: how many drafts stand. features: the target's residual streams [T, D] behind the
    layers that Drafter.features names. What belongs to padding is in range and means nothing.
    """

    meta: Array
    layout: MetaLayout
    ids_T: Array
    next_T: Array
    tip_S: Array
    accepted_S: Array
    features: tuple[Array, ...] = ()

    def field(self, name: str) -> Array:
        return self.meta[self.layout.slices[name]]

    @property
    def capacity(self) -> int:
        """Positions that block tables have room for. What is drafted beyond is never used."""
        return self.layout.blocks * self.layout.block_keys

    @property
    def newest_S(self) -> Array:
        """Each sequence's newest token."""
        return _take(self.next_T, self.tip_S)

    def single_layout(self) -> MetaLayout:
        """Of a pass that takes one token of each sequence."""
        own, rows = self.layout, self.layout.rows
        family = "step" if own.family == "step" else "decode"
        return MetaLayout(rows, rows, own.blocks, family, own.block_keys)

    def single(self, index: Array) -> Array:
        """The metadata of a pass over one token of each sequence, `index` behind the newest.

        It also samples: as the target would, with the uniform number of the position that follows.
        """
        rows, live = self.layout.rows, self.meta[1]
        row_S = jnp.arange(rows, dtype=jnp.int32)
        positions_S = _take(self.field("positions"), self.tip_S) + 1 + index
        positions_S = jnp.where(row_S < live, jnp.minimum(positions_S, self.capacity - 1), 0)
        draws = self.layout.lookahead + self.layout.draft
        uniform = self.field("draft_uniform")
        at_S = row_S * draws + jnp.minimum(self.accepted_S + index, draws - 1)
        fields = {
            "counts": jnp.stack([live, live, live, jnp.zeros_like(live)]),
            "positions": positions_S,
            "token_seq": row_S,
            "query_starts": jnp.minimum(jnp.arange(rows + 1, dtype=jnp.int32), live),
            "context_lens": jnp.where(row_S < live, positions_S + 1, 0),
            "block_tables": self.field("block_tables"),
            "sample_tokens": row_S,
            "logprob_counts": jnp.full((rows,), -1, jnp.int32),
            "target_ids": jnp.full((rows,), -1, jnp.int32),
            "uniform": _take(uniform, at_S),
        }
        for name in PARAMETERS:
            fields[name] = _take(self.field(name), self.field("draft_rows"))
        return pack_meta(self.single_layout(), fields)

    def pick(
        self, sample: Callable[..., Array], logits_SV: Array, meta: Array, vocab: int
    ) -> Array:
        """A token a sequence by a sampler of `vocab` logits; `meta` is that of `single`."""
        rows = logits_SV.shape[0]
        edits = jnp.zeros((rows, 1, 3), jnp.int32)
        allowed = jnp.zeros((rows, -(-vocab // 32)), jnp.int32)
        layout = self.single_layout()
        out = sample(logits_SV, meta, layout, edits, allowed, top_count=0)
        return out[:, 0]


class Drafter(Protocol):
    """Guesses tokens on the device, inside the target's step."""

    @property
    def features(self) -> tuple[int, ...]:
        """Ascending: i is the target's residual stream behind i layers, 0 the embeddings."""
        ...

    def draft(
        self, weights: Mapping[str, Array], state: dict[str, Array], seen: Verified, count: int
    ) -> tuple[dict[str, Array], Array]:
        """Take in the step's tokens, then guess `count` for each sequence.

        `weights` and `state` are the program's, the drafter's own under PREFIX; returns its own
        state and the guesses [S, count]. Must hold: after any step the state covers every token
        before the newest, whatever was accepted or drafted before.
        """
        ...


def verify(
    meta: Array, layout: MetaLayout, ids_T: Array, sampled_R: Array, features: tuple[Array, ...]
) -> Verified:
    """Compare drafts with what the target sampled in their place."""
    at, tokens = layout.slices, layout.tokens
    row_R = jnp.arange(sampled_R.shape[0], dtype=jnp.int32)
    row_S = jnp.arange(layout.rows, dtype=jnp.int32)
    next_T = jnp.concatenate([ids_T[1:], jnp.zeros((2,), jnp.int32)])
    # Rows of padding write to the place behind the last token.
    end_S = jnp.where(row_S < meta[1], meta[at["query_starts"]][1:] - 1, tokens)
    next_T = next_T.at[end_S].set(meta[at["next_ids"]], mode="promise_in_bounds")
    spot_R = jnp.where(row_R < meta[2], meta[at["sample_tokens"]], tokens)
    next_T = next_T.at[spot_R].set(sampled_R, mode="promise_in_bounds")
    last_S, count_S = meta[at["last_tokens"]], meta[at["draft_counts"]]
    stands_S, accepted_S = jnp.ones_like(count_S), jnp.zeros_like(count_S)
    for j in range(1, layout.lookahead + 1):
        spot_S = jnp.minimum(last_S + j, tokens - 1)
        is_same = _take(ids_T, spot_S) == _take(next_T, jnp.maximum(spot_S - 1, 0))
        stands_S = jnp.where(is_same & (count_S >= j), stands_S, 0)
        accepted_S = accepted_S + stands_S
    return Verified(meta, layout, ids_T, next_T[:tokens], last_S + accepted_S, accepted_S, features)


def pack_meta(layout: MetaLayout, fields: Mapping[str, Array]) -> Array:
    """The packed buffer of a pass inside a program; fields that are not given are 0."""
    parts = [fields.get(name, jnp.zeros((size,), jnp.int32)) for name, size in layout.sizes.items()]
    return jnp.concatenate(parts)


def _take(x: Array, index: Array) -> Array:
    """x[index] along the first axis; the index is in range."""
    return x.at[index].get(mode="promise_in_bounds")
