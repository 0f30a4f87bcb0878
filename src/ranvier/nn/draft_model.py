"""A smaller model of the same vocabulary as drafter: its own layers and caches, the same blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn.decoder import Decoder, DecoderNumbers
from ranvier.nn.draft import PREFIX, Verified, pack_meta
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.sample_rows import sampler_of
from ranvier.nn.shards import Shards

__all__ = ["ModelDrafter"]

Caches = tuple[Array, Array]


@dataclass(frozen=True)
class ModelDrafter:
    """Drafts with a whole decoder of the numbers `spec`; `dtype` is that of its activations.

    Over ranks it is cut as its target is, and its numbers are a rank's.
    """

    spec: DecoderNumbers
    kernels: Kernels
    dtype: Any = None
    shards: Shards | None = None

    @property
    def features(self) -> tuple[int, ...]:
        return ()

    def draft(
        self, weights: Mapping[str, Array], state: dict[str, Array], seen: Verified, count: int
    ) -> tuple[dict[str, Array], Array]:
        """As Drafter.draft: `count` passes over the draft's layers, or one without drafting."""
        own = {k.removeprefix(PREFIX): w for k, w in weights.items() if k.startswith(PREFIX)}
        caches = state[f"{PREFIX}k"], state[f"{PREFIX}v"]
        if not count:
            decoder = self._decoder(seen.layout)
            x_TD = decoder.embed(own, seen.ids_T)
            _, k, v, _ = decoder.run(own, x_TD, caches, seen.meta)
            return _named(k, v), jnp.zeros((seen.layout.rows, 0), jnp.int32)
        with jax.named_scope("absorb"):
            first_S, caches = self._absorb(own, caches, seen)
        with jax.named_scope("propose"):
            drafts_SK, caches = self._propose(own, caches, seen, first_S, count)
        return _named(*caches), drafts_SK

    def _absorb(
        self, own: Mapping[str, Array], caches: Caches, seen: Verified
    ) -> tuple[Array, Caches]:
        """Take the step's tokens and the newest one of each sequence; the first guesses [S]."""
        layout, meta, ids, rows_S = _longer(seen)
        decoder = self._decoder(layout)
        hidden, k, v, _ = decoder.run(own, decoder.embed(own, ids), caches, meta)
        return self._guess(own, _take(hidden, rows_S), seen, jnp.int32(0)), (k, v)

    def _propose(
        self, own: Mapping[str, Array], caches: Caches, seen: Verified, first_S: Array, count: int
    ) -> tuple[Array, Caches]:
        decoder = self._decoder(seen.single_layout())

        def body(carry: tuple[Array, Caches], index: Array) -> tuple[tuple[Array, Caches], Array]:
            ids_S, caches = carry
            meta = seen.single(index)
            x_SD, k, v, _ = decoder.run(own, decoder.embed(own, ids_S), caches, meta)
            ids_S = self._guess(own, x_SD, seen, index)
            return (ids_S, (k, v)), ids_S

        steps = jnp.arange(1, count, dtype=jnp.int32)
        (_, caches), rest_KS = lax.scan(body, (first_S, caches), steps)
        return jnp.concatenate([first_S[None], rest_KS]).T, caches

    def _guess(
        self, own: Mapping[str, Array], rows_SD: Array, seen: Verified, index: Array
    ) -> Array:
        logits_SV = self._decoder(seen.single_layout()).head(own, rows_SD, seen.meta[1:2])
        sample = sampler_of(self.kernels, self.shards, own)
        vocab = self.shards.vocab_size if self.shards else self.spec.vocab_size
        return seen.pick(sample, logits_SV, seen.single(index), vocab)

    def _decoder(self, layout: MetaLayout) -> Decoder:
        return Decoder(self.spec, self.kernels, layout, 0, self.shards, self.dtype)


def _named(k: Array, v: Array) -> dict[str, Array]:
    return {f"{PREFIX}k": k, f"{PREFIX}v": v}


def _longer(seen: Verified) -> tuple[MetaLayout, Array, Array, Array]:
    """A pass over each sequence's tokens and its newest: layout, meta, ids, rows of the newest.

    The newest token takes the place of the first rejected draft. Of a sequence that only decodes
    the drafter made all drafts but the last itself: the last that stands and the newest are enough,
    where rows may be of any number; what stands behind the newest elsewhere is overwritten later.
    """
    own, rows, live = seen.layout, seen.layout.rows, seen.meta[1]
    layout = MetaLayout(own.tokens + rows, rows, own.blocks, own.family, own.block_keys)
    row_S = jnp.arange(rows, dtype=jnp.int32)
    starts = seen.field("query_starts")
    first_S = jnp.clip(starts[:-1], 0, own.tokens - 1)
    count_S = starts[1:] - starts[:-1] + 1
    if own.family == "step":
        first_S = jnp.where(seen.field("last_tokens") == first_S, seen.tip_S, first_S)
        count_S = seen.tip_S - first_S + 2
    count_S = jnp.where(row_S < live, count_S, 0)
    is_before = jnp.arange(rows + 1, dtype=jnp.int32)[:, None] > row_S[None, :]
    longer = jnp.sum(jnp.where(is_before, count_S[None, :], 0), axis=1)
    spot = jnp.arange(layout.tokens, dtype=jnp.int32)
    is_past = (longer[1:][None, :] <= spot[:, None]).astype(jnp.int32)
    seq = jnp.minimum(jnp.sum(is_past, axis=1), rows - 1)
    inner, first = spot - _take(longer, seq), _take(first_S, seq)
    before = jnp.clip(first + inner - 1, 0, own.tokens - 1)
    ids = jnp.where(inner == 0, _take(seen.ids_T, first), _take(seen.next_T, before))
    positions = jnp.minimum(_take(seen.field("positions"), first) + inner, seen.capacity - 1)
    end_S = _take(seen.field("positions"), first_S) + count_S
    fields = {
        "counts": jnp.stack([longer[rows], live, live, jnp.zeros_like(live)]),
        "positions": jnp.where(spot < longer[rows], positions, 0),
        "token_seq": seq,
        "query_starts": longer,
        "context_lens": jnp.where(row_S < live, jnp.minimum(end_S, seen.capacity), 0),
        "block_tables": seen.field("block_tables"),
    }
    newest_S = jnp.where(row_S < live, longer[:rows] + seen.tip_S - first_S + 1, 0)
    return layout, pack_meta(layout, fields), ids, newest_S


def _take(x: Array, index: Array) -> Array:
    """x[index] along the first axis; the index is in range."""
    return x.at[index].get(mode="promise_in_bounds")
