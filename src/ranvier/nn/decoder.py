"""The decoder's step: one pure function of weights, state and inputs for every family.

Knows a model only through DecoderSpec-like numbers and a target only through its Kernels. Weights
are never sliced: kernels take the whole stack and the layer's index, so one scanned body serves all
layers and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn import rope
from ranvier.nn.draft import Drafter, verify
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear import weight_of
from ranvier.nn.kernels.lora import LoraPart, lora_of
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.sample_rows import sampler_of
from ranvier.nn.shards import Shards
from ranvier.nn.stream import Stream
from ranvier.nn.vision.cross import CrossLayers
from ranvier.nn.vision.text import Seen, look

__all__ = ["Decoder", "DecoderNumbers"]

Weights = Mapping[str, Array]
State = dict[str, Array]
Carry = tuple[Array, Array, Array]
"""What goes through the layers: x [T, D], k, v."""


class DecoderNumbers(Protocol):
    """What the step reads of models.spec.DecoderSpec."""

    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def qkv_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> Any: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def embed_scale(self) -> float: ...
    @property
    def has_qkv_bias(self) -> bool: ...
    @property
    def has_qk_norm(self) -> bool: ...
    @property
    def has_post_norms(self) -> bool: ...
    @property
    def is_tied(self) -> bool: ...
    @property
    def rope_axes(self) -> tuple[int, ...]: ...
    @property
    def cross_before(self) -> tuple[int, ...]: ...
    @property
    def embed_rows(self) -> int: ...


@dataclass(frozen=True)
class Decoder:
    """One program's static parts: the model's numbers, the target's kernels, the bucket's layout.

    `top_count` is K, the top log-probabilities that the program returns. `dtype` is that of the
    activations, None: the cache's. `adapters`: the parts of each linear that adapters may change.
    """

    spec: DecoderNumbers
    kernels: Kernels
    layout: MetaLayout
    top_count: int
    shards: Shards | None = None
    dtype: Any = None
    drafter: Drafter | None = None
    adapters: Mapping[str, tuple[LoraPart, ...]] = field(default_factory=dict)

    def step(self, weights: Weights, state: State, inputs: State) -> tuple[State, Array]:
        """Run up to layout.tokens tokens and sample up to layout.samples rows.

        Shapes: state k, v (see Kernels.cache_shapes), sampled int32 [samples_max]; inputs meta,
        edits, allowed (ARCHITECTURE.md). Returns (state, int32 [R, 3 + 2K + layout.draft]); the
        last columns are drafts, a sequence a row. Donates: state.
        """
        meta, layout = inputs["meta"], self.layout
        ids_T = self._ids(state, meta)
        caches, wanted = (state["k"], state["v"]), self.drafter.features if self.drafter else ()
        x_TD, seen_of = self._look(weights, self.embed(weights, ids_T), state, meta)
        hidden_TD, k, v, features = self.run(weights, x_TD, caches, meta, wanted, seen_of)
        with jax.named_scope("head"):
            picks_R = meta[layout.slices["sample_tokens"]]
            rows_RD = Stream(self.shards, weights).rows(hidden_TD, picks_R)
            logits_RV = self.head(weights, rows_RD, meta[2:3])
        with jax.named_scope("sample"):
            edits, allowed = inputs["edits"], inputs["allowed"]
            out = sampler_of(self.kernels, self.shards, weights)(
                logits_RV, meta, layout, edits, allowed, top_count=self.top_count
            )
        sampled = lax.dynamic_update_slice(state["sampled"], out[:, 0], (0,))
        new = {**state, "k": k, "v": v, "sampled": sampled}
        if self.drafter is None:
            return new, out
        with jax.named_scope("draft"):
            seen = verify(meta, layout, ids_T, out[:, 0], features)
            own, drafts_SK = self.drafter.draft(weights, state, seen, layout.draft)
        spare = jnp.zeros((out.shape[0] - layout.rows, layout.draft), jnp.int32)
        return {**new, **own}, jnp.concatenate([out, jnp.concatenate([drafts_SK, spare])], axis=1)

    def logits_of_all(self, weights: Weights, state: State, meta: Array) -> tuple[State, Array]:
        """Logits [T, V] of every token: what the parity tests compare."""
        x_TD = self.embed(weights, self._ids(state, meta))
        x_TD, seen = self._look(weights, x_TD, state, meta)
        caches = (state["k"], state["v"])
        hidden_TD, k, v, _ = self.run(weights, x_TD, caches, meta, seen=seen)
        logits_TV = self.head(weights, hidden_TD, meta[0:1])
        return {**state, "k": k, "v": v}, logits_TV

    def head(self, weights: Weights, rows_RD: Array, count: Array) -> Array:
        """Logits of rows of the residual stream; of several ranks each one's part of them."""
        head = weight_of(weights, "embed" if self.spec.is_tied else "head")
        norm = (weights["final_norm"], self.spec.norm_eps)
        first = jnp.zeros((1,), jnp.int32)
        return self.kernels.linear(
            rows_RD, head, first, count,
            outputs=self.spec.vocab_size, norm=norm, out_dtype=jnp.float32,
        )  # fmt: skip

    def _look(
        self, weights: Weights, x_TD: Array, state: State, meta: Array
    ) -> tuple[Array, Seen | None]:
        """Pictures' features in place, and what else pictures add on the way."""
        vision = self.layout.vision
        if vision is None or not vision.is_cross:
            return look(x_TD, state, meta, self.layout)
        cross = CrossLayers(
            self.spec, self.kernels, self.layout, weights, state, meta,
            self.dtype or state["k"].dtype, self.shards.sum if self.shards else lambda y: y,
        )  # fmt: skip
        return x_TD, Seen(across=cross.across())

    def _ids(self, state: State, meta: Array) -> Array:
        """The step's tokens; those that the last step sampled are still here."""
        source_T = meta[self.layout.slices["token_source"]]
        last_T = state["sampled"].at[jnp.maximum(source_T, 0)].get(mode="promise_in_bounds")
        return jnp.where(source_T >= 0, last_T, meta[self.layout.slices["token_ids"]])

    def embed(self, weights: Weights, ids_T: Array) -> Array:
        """Rows of tokens; of several ranks the one that holds a token gives its row."""
        spec, table = self.spec, weight_of(weights, "embed")

        def rows(ids_T: Array) -> Array:
            return self.kernels.embed(table, ids_T, hidden=spec.hidden, scale=spec.embed_scale)

        if self.shards is None:
            return rows(ids_T)
        x_TD = self.shards.look_up(rows, ids_T, spec.embed_rows, weights["rank"])
        return Stream(self.shards, weights).join_all(x_TD)

    def run(
        self,
        weights: Weights,
        x_TD: Array,
        caches: tuple[Array, Array],
        meta: Array,
        wanted: tuple[int, ...] = (),
        seen: Seen | None = None,
    ) -> tuple[Array, Array, Array, tuple[Array, ...]]:
        """Every layer over the step's embedded tokens: the residual stream, k and v.

        `wanted`, ascending: also the streams behind so many layers, 0 for x itself. `seen`: what
        pictures add on the way.
        """
        cos_sin, seen = self._angles(weights, meta), seen or Seen()
        slots_T, stream = self._slots(meta), Stream(self.shards, weights)

        if self.shards is not None and self.shards.pipeline > 1:
            assert not (wanted or seen.across), "not over pipeline stages"
            return (*self._relay(weights, (x_TD, *caches), meta, cos_sin), ())

        def body(carry: Carry, layer: Array) -> tuple[Carry, None]:
            at = _At(weights, layer[None], meta, slots_T, stream)
            x_TD, k, v = self._layer(at, carry, cos_sin)
            return (seen.deepen(x_TD, layer), k, v), None

        carry, found = (x_TD, *caches), []
        for start, stop in pairwise(sorted({0, *wanted, *seen.across, self.spec.layers})):
            if start in wanted:
                found.append(stream.whole(carry[0]))
            if start in seen.across:
                carry = (seen.across[start](carry[0]), *carry[1:])
            carry, _ = lax.scan(body, carry, jnp.arange(start, stop, dtype=jnp.int32))
        if self.spec.layers in wanted:
            found.append(stream.whole(carry[0]))
        if self.spec.layers in seen.across:
            carry = (seen.across[self.spec.layers](carry[0]), *carry[1:])
        return (*carry, tuple(found))

    def _relay(self, weights: Weights, carry: Carry, meta: Array, cos_sin: Array) -> Carry:
        """The layers of each pipeline stage in turn."""

        def layers(carry: Carry, meta: Array) -> Carry:
            slots_T = self._slots(meta)

            def body(carry: Carry, layer: Array) -> tuple[Carry, None]:
                at = _At(weights, layer[None], meta, slots_T, Stream(self.shards, weights))
                return self._layer(at, carry, cos_sin), None

            done: Carry = lax.scan(body, carry, jnp.arange(self.spec.layers, dtype=jnp.int32))[0]
            return done

        assert self.shards is not None
        x_TD, k, v = self.shards.relay(layers, weights, carry, meta)
        return x_TD, k, v

    def _layer(self, at: _At, carry: Carry, cos_sin: Array) -> Carry:
        """Attention and MLP of one layer."""
        x_TD, k, v = carry
        out_TO, k, v = self._attend(at, x_TD, k, v, cos_sin)
        x_TD = self._add(at, "o", x_TD, out_TO)
        x_TD = self._add(at, "down", x_TD, self._gate(at, x_TD, self.dtype or k.dtype))
        return x_TD, k, v

    def _angles(self, weights: Weights, meta: Array) -> Array:
        """Cosines and sines of each token's position, or of its three."""
        with jax.named_scope("rope"):
            at, freqs, scale = self.layout.slices, weights["inv_freq"], weights["rope_scale"]
            if not self.spec.rope_axes:
                return rope.tables(meta[at["positions"]], freqs, scale)
            name = "rope_positions" if "rope_positions" in at else "positions"
            rows = meta[at[name]].reshape(-1, self.layout.tokens)
            positions_AT = jnp.broadcast_to(rows, (3, self.layout.tokens))
            return rope.axial_tables(positions_AT, freqs, scale, weights["rope_axes"])

    def _attend(
        self, at: _At, x_TD: Array, k: Array, v: Array, cos_sin: Array
    ) -> tuple[Array, Array, Array]:
        spec, weights = self.spec, at.weights
        numbers = AttentionSpec(
            spec.heads, spec.kv_heads, spec.head_size, spec.attention_scale, spec.norm_eps,
            out_dtype=self.dtype,
        )  # fmt: skip
        with jax.named_scope("attention"):
            x_TD, norm = at.stream.normed(
                self.kernels, x_TD, (weights["attn_norm"], spec.norm_eps), (at.layer, at.count),
                self.dtype or k.dtype,
            )  # fmt: skip
            qkv_TO = self._linear(
                at, "qkv", x_TD,
                outputs=spec.qkv_size, norm=norm,
                bias=weights["qkv_bias"] if spec.has_qkv_bias else None,
                out_dtype=jnp.float32,
            )  # fmt: skip
            return self.kernels.attention(
                qkv_TO, k, v, at.layer, at.meta, self.layout, numbers,
                cos_sin=cos_sin, windows=weights["windows"], ropes=weights["ropes"],
                q_norm=weights["q_norm"] if spec.has_qk_norm else None,
                k_norm=weights["k_norm"] if spec.has_qk_norm else None,
            )  # fmt: skip

    def _gate(self, at: _At, x_TD: Array, dtype: Any) -> Array:
        with jax.named_scope("mlp"):
            x_TD, norm = at.stream.normed(
                self.kernels, x_TD, (at.weights["mlp_norm"], self.spec.norm_eps),
                (at.layer, at.count), dtype,
            )  # fmt: skip
            return self._linear(
                at, "gate_up", x_TD,
                outputs=2 * self.spec.intermediate, norm=norm,
                gated=self.spec.activation, out_dtype=dtype,
            )  # fmt: skip

    def _linear(self, at: _At, name: str, x: Array, **options: Any) -> Array:
        """One linear of the layer: where everything that changes all of them belongs."""
        weight = weight_of(at.weights, name)
        if name in self.adapters:
            assert at.slots_T is not None
            options["lora"] = lora_of(at.weights, name, at.slots_T, self.adapters[name])
        return self.kernels.linear(x, weight, at.layer, at.count, **options)

    def _slots(self, meta: Array) -> Array | None:
        """Each token's slot of an adapter: that of its sequence; None: the program has none."""
        if not self.adapters:
            return None
        owners_T, slots_S = (meta[self.layout.slices[name]] for name in ("token_seq", "slots"))
        slots_T: Array = slots_S.at[owners_T].get(mode="promise_in_bounds")
        return slots_T

    def _add(self, at: _At, name: str, x_TD: Array, inner: Array) -> Array:
        """Project back into the residual stream, through a norm where the family has one."""
        spec, post = self.spec, self.spec.has_post_norms
        is_whole = self.shards is None and not post
        y_TD = self._linear(
            at, name, inner,
            outputs=spec.hidden, residual=x_TD if is_whole else None, out_dtype=jnp.float32,
        )  # fmt: skip
        if is_whole:
            return y_TD
        y_TD = at.stream.join(y_TD)
        if not post:
            return x_TD + y_TD
        return self.kernels.rms_norm(
            y_TD, at.weights[f"{name}_norm"], at.layer, at.stream.count(at.count, y_TD),
            eps=spec.norm_eps, residual=x_TD,
        )  # fmt: skip


@dataclass(frozen=True)
class _At:
    """Where the scan is: the whole weights, the layer's index [1], the step's metadata, slots,
    how the residual stream lies."""

    weights: Weights
    layer: Array
    meta: Array
    slots_T: Array | None
    stream: Stream

    @property
    def count(self) -> Array:
        return self.meta[0:1]
