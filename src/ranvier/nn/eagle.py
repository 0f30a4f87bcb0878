"""EagleDrafter: a head of one layer that guesses from the target's own features.

An entry of its caches at position p is made of the target's feature at p and the token at p + 1; a
guess is made of the head's own output in the feature's place. Source of the formulas: EAGLE
(Li et al. 2024, 2025), vLLM 0.11 llama_eagle.py and llama_eagle3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn import rope
from ranvier.nn.decoder import DecoderNumbers
from ranvier.nn.draft import PREFIX, Verified
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear import weight_of
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.sample_rows import sampler_of
from ranvier.nn.shards import Shards

__all__ = ["EagleDrafter", "EagleHead", "EagleNumbers"]

Weights = Mapping[str, Array]
Caches = tuple[Array, Array]


class EagleNumbers(Protocol):
    """What the head reads of models.eagle.EagleSpec."""

    @property
    def decoder(self) -> DecoderNumbers: ...
    @property
    def is_eagle3(self) -> bool: ...
    @property
    def taps(self) -> tuple[int, ...]: ...
    @property
    def norm_before_residual(self) -> bool: ...
    @property
    def has_input_norm(self) -> bool: ...
    @property
    def has_fc_bias(self) -> bool: ...
    @property
    def has_embed(self) -> bool: ...
    @property
    def has_head(self) -> bool: ...
    @property
    def is_reduced(self) -> bool: ...


@dataclass(frozen=True)
class EagleHead:
    """The head's pure functions on weights under its own names; `dtype`: of its activations.

    Over ranks its layer is cut as one of its target's; fc and what goes in and out are whole.
    """

    spec: EagleNumbers
    kernels: Kernels
    dtype: Any = None
    shards: Shards | None = None

    def fuse(self, weights: Weights, features_TF: Array, count: Array) -> Array:
        """What EAGLE-3's layer takes of features that lie side by side; EAGLE's takes them so."""
        if not self.spec.is_eagle3:
            return features_TF
        return self._fc(weights, features_TF, count)

    def layer(
        self,
        weights: Weights,
        caches: Caches,
        streams: tuple[Array, Array],
        meta: Array,
        layout: MetaLayout,
    ) -> tuple[Array, Caches]:
        """One pass; streams: the next tokens' embeddings and the fused features, [T, D] both.

        Returns the stream after the layer, the feature of a pass that follows, and the caches.
        """
        count, own = meta[0:1], self.spec.decoder
        mixed_TI, residual_TD = self._inputs(weights, streams, count)
        is_normed = self.spec.has_input_norm and not self.spec.is_eagle3
        qkv_TO = self._linear(
            weights, "qkv", mixed_TI, count,
            outputs=own.qkv_size,
            norm=(weights["attn_norm"], own.norm_eps) if is_normed else None,
            bias=weights["qkv_bias"] if own.has_qkv_bias else None,
        )  # fmt: skip
        positions_T = meta[layout.slices["positions"]]
        numbers = AttentionSpec(
            own.heads, own.kv_heads, own.head_size, own.attention_scale, own.norm_eps,
            out_dtype=self.dtype,
        )  # fmt: skip
        out_TO, k, v = self.kernels.attention(
            qkv_TO, *caches, _first(), meta, layout, numbers,
            cos_sin=rope.tables(positions_T, weights["inv_freq"], weights["rope_scale"]),
            windows=weights["windows"], ropes=weights["ropes"],
            q_norm=weights["q_norm"] if own.has_qk_norm else None,
            k_norm=weights["k_norm"] if own.has_qk_norm else None,
        )  # fmt: skip
        x_TD = self._add(weights, "o", residual_TD, out_TO, count)
        inner_TF = self._linear(
            weights, "gate_up", x_TD, count,
            outputs=2 * own.intermediate, norm=(weights["mlp_norm"], own.norm_eps),
            gated=own.activation, out_dtype=self.dtype or k.dtype,
        )  # fmt: skip
        return self._add(weights, "down", x_TD, inner_TF, count), (k, v)

    def logits(self, weights: Weights, rows_RD: Array, count: Array) -> Array:
        """Logits over the head's own vocabulary, [R, Vd]; of several ranks each one's part."""
        own = self.spec.decoder
        norm = (weights["final_norm"], own.norm_eps) if self.spec.is_eagle3 else None
        return self._linear(weights, "head", rows_RD, count, outputs=own.vocab_size, norm=norm)

    def _inputs(
        self, weights: Weights, streams: tuple[Array, Array], count: Array
    ) -> tuple[Array, Array]:
        """What goes into q, k and v, and the residual beside it."""
        embeds_TD, hidden_TD = streams
        own = self.spec.decoder
        if not self.spec.is_eagle3:
            both = jnp.concatenate([embeds_TD, hidden_TD], axis=1)
            x_TD = self._fc(weights, both, count)
            return x_TD, x_TD
        norms = [
            self.kernels.rms_norm(x, weights[name], _first(), count, eps=own.norm_eps)
            for x, name in ((embeds_TD, "attn_norm"), (hidden_TD, "hidden_norm"))
        ]
        residual_TD = norms[1] if self.spec.norm_before_residual else hidden_TD
        return jnp.concatenate(norms, axis=1), residual_TD

    def _add(self, weights: Weights, name: str, x_TD: Array, inner: Array, count: Array) -> Array:
        """Project back into the stream."""
        outputs = self.spec.decoder.hidden
        if self.shards is None:
            return self._linear(weights, name, inner, count, outputs=outputs, residual=x_TD)
        return x_TD + self.shards.sum(self._linear(weights, name, inner, count, outputs=outputs))

    def _fc(self, weights: Weights, x_TI: Array, count: Array) -> Array:
        bias = weights["fc_bias"] if self.spec.has_fc_bias else None
        outputs = self.spec.decoder.hidden
        return self._linear(weights, "fc", x_TI, count, outputs=outputs, bias=bias)

    def _linear(self, weights: Weights, name: str, x: Array, count: Array, **options: Any) -> Array:
        options.setdefault("out_dtype", jnp.float32)
        return self.kernels.linear(x, weight_of(weights, name), _first(), count, **options)


@dataclass(frozen=True)
class EagleDrafter:
    """The head as a drafter (nn/draft.py). `target`: the numbers of the model it drafts for.

    Over ranks all numbers are a rank's, and `shards` has the head's whole vocabulary.
    """

    spec: EagleNumbers
    target: DecoderNumbers
    kernels: Kernels
    dtype: Any = None
    shards: Shards | None = None

    @property
    def features(self) -> tuple[int, ...]:
        return self.spec.taps if self.spec.is_eagle3 else (self.target.layers,)

    def draft(
        self, weights: Weights, state: dict[str, Array], seen: Verified, count: int
    ) -> tuple[dict[str, Array], Array]:
        """As Drafter.draft: one pass over the step's tokens, then count - 1 of one token."""
        own = self.own(weights)
        caches = state[f"{PREFIX}k"], state[f"{PREFIX}v"]
        with jax.named_scope("absorb"):
            hidden_TD, caches = self._absorb(weights, own, caches, seen)
        if not count:
            return _named(caches), jnp.zeros((seen.layout.rows, 0), jnp.int32)
        with jax.named_scope("propose"):
            hidden_SD = _take(hidden_TD, seen.tip_S)
            ids_S = self._guess(own, hidden_SD, seen, jnp.int32(0))

            def body(
                carry: tuple[Array, Array, Caches], index: Array
            ) -> tuple[tuple[Array, Array, Caches], Array]:
                ids_S, hidden_SD, caches = carry
                # The pass over the guess `index` stands where its feature would: one before it.
                meta, layout = seen.single(index - 1), seen.single_layout()
                streams = self.embed(own, ids_S), hidden_SD
                hidden_SD, caches = self._head.layer(own, caches, streams, meta, layout)
                ids_S = self._guess(own, hidden_SD, seen, index)
                return (ids_S, hidden_SD, caches), ids_S

            steps = jnp.arange(1, count, dtype=jnp.int32)
            (_, _, caches), rest_KS = lax.scan(body, (ids_S, hidden_SD, caches), steps)
        return _named(caches), jnp.concatenate([ids_S[None], rest_KS]).T

    def _absorb(
        self, weights: Weights, own: Weights, caches: Caches, seen: Verified
    ) -> tuple[Array, Caches]:
        count = seen.meta[0:1]
        if self.spec.is_eagle3:
            features_TF = jnp.concatenate(list(seen.features), axis=1)
        else:
            features_TF = self.kernels.rms_norm(
                seen.features[0], weights["final_norm"], _first(), count, eps=self.target.norm_eps
            )
        fused_TD = self._head.fuse(own, features_TF, count)
        streams = self.embed(own, seen.next_T), fused_TD
        return self._head.layer(own, caches, streams, seen.meta, seen.layout)

    @property
    def _head(self) -> EagleHead:
        return EagleHead(self.spec, self.kernels, self.dtype, self.shards)

    def own(self, weights: Weights) -> dict[str, Array]:
        """The head's weights by its own names, with what it shares with its target."""
        own = {k.removeprefix(PREFIX): w for k, w in weights.items() if k.startswith(PREFIX)}
        shared = {}
        if not self.spec.has_embed:
            shared["embed"] = "embed"
        if not (self.spec.has_head or self.spec.is_reduced):
            shared["head"] = "embed" if self.target.is_tied else "head"
        for name, source in shared.items():
            for suffix in ("", ".blob", ".table"):
                if source + suffix in weights:
                    own[name + suffix] = weights[source + suffix]
        return own

    def embed(self, own: Weights, ids: Array) -> Array:
        """Embeddings [T, D] of target ids: the head's own, or the target's."""
        numbers = self.spec.decoder if self.spec.has_embed else self.target
        table = weight_of(own, "embed")

        def rows(ids: Array) -> Array:
            size, scale = numbers.hidden, numbers.embed_scale
            return self.kernels.embed(table, ids, hidden=size, scale=scale)

        if self.shards is None:
            return rows(ids)
        part_TD = self.shards.look_up(rows, ids, numbers.embed_rows, own["rank"])
        return self.shards.sum_all(part_TD)

    def _guess(self, own: Weights, rows_SD: Array, seen: Verified, index: Array) -> Array:
        """A token a sequence, drawn with the uniform number that the target will draw with."""
        logits_SV = self._head.logits(own, rows_SD, seen.meta[1:2])
        sample = sampler_of(self.kernels, self.shards, own)
        vocab = self.shards.vocab_size if self.shards else self.spec.decoder.vocab_size
        ids_S = seen.pick(sample, logits_SV, seen.single(index), vocab)
        return _take(own["ids"], ids_S) if self.spec.is_reduced else ids_S


def _named(caches: Caches) -> dict[str, Array]:
    return {f"{PREFIX}k": caches[0], f"{PREFIX}v": caches[1]}


def _first() -> Array:
    """The index of the head's one layer."""
    return jnp.zeros((1,), jnp.int32)


def _take(x: Array, index: Array) -> Array:
    """x[index] along the first axis; the index is in range."""
    return x.at[index].get(mode="promise_in_bounds")
