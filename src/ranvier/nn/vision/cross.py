"""Layers of the text side that attend to the tiles of pictures (Llama 3.2 Vision).

A sequence's tiles lie in blocks of keys and values; a token attends to a run of them, or to none:
then the layer leaves it as it is. A step without any such token does none of the layer's work where
kernels count live rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn.kernels.attention.reference import MASKED, cut, merge
from ranvier.nn.kernels.linear import weight_of
from ranvier.nn.kernels.norm.reference import normalise
from ranvier.nn.kernels.table import Kernels

__all__ = ["CrossLayers", "CrossNumbers"]


class CrossNumbers(Protocol):
    """What the layers read of a decoder's numbers."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> Any: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def cross_before(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class CrossLayers:
    """One step's cross-attention layers. `sum` joins the parts of several cores."""

    spec: CrossNumbers
    kernels: Kernels
    layout: MetaLayout
    weights: Mapping[str, Array]
    state: Mapping[str, Array]
    meta: Array
    dtype: Any
    sum: Callable[[Array], Array]

    def across(self) -> dict[int, Callable[[Array], Array]]:
        """What happens to the residual stream before each self-attention layer of some."""
        table: dict[int, Callable[[Array], Array]] = {}
        for i, before in enumerate(self.spec.cross_before):
            table[before] = self._layer(i, table.get(before))
        return table

    def _layer(self, i: int, first: Callable[[Array], Array] | None) -> Callable[[Array], Array]:
        def run(x_TD: Array) -> Array:
            x_TD = x_TD if first is None else first(x_TD)
            with jax.named_scope("cross"):
                return self._run(i, x_TD)

        return run

    def _run(self, i: int, x_TD: Array) -> Array:
        at = self.layout.slices
        is_seeing_T1 = (self.meta[at["cross_to"]] > self.meta[at["cross_from"]])[:, None]
        live = jnp.where(jnp.max(is_seeing_T1.astype(jnp.int32)) > 0, self.meta[0:1], 0)
        spec, layer = self.spec, jnp.full((1,), i, jnp.int32)

        def linear(name: str, x: Array, outputs: int, **options: Any) -> Array:
            weight = weight_of(self.weights, f"cross_{name}")
            return self.kernels.linear(x, weight, layer, live, outputs=outputs, **options)

        def gated(name: str, y_TD: Array) -> Array:
            gate = jnp.tanh(self.weights[f"cross_{name}_gate"][i])
            return jnp.where(is_seeing_T1, x_TD + gate * self.sum(y_TD), x_TD)

        norm1 = (self.weights["cross_norm1"], spec.norm_eps)
        q_TO = linear("q", x_TD, spec.heads * spec.head_size, norm=norm1, out_dtype=jnp.float32)
        out_TO = self._attend(i, jnp.where(is_seeing_T1, q_TO, 0.0))
        x_TD = gated("attn", linear("o", out_TO, spec.hidden, out_dtype=jnp.float32))
        norm2 = (self.weights["cross_norm2"], spec.norm_eps)
        inner = linear("gate_up", x_TD, 2 * spec.intermediate, norm=norm2, gated=spec.activation,
                       out_dtype=self.dtype)  # fmt: skip
        return gated("mlp", linear("down", inner, spec.hidden, out_dtype=jnp.float32))

    def _attend(self, i: int, q_TO: Array) -> Array:
        """Attention of each token over its run of tiles: [T, H * E], 0 where it has none."""
        spec, layout = self.spec, self.layout
        q = normalise(q_TO.reshape(-1, spec.head_size), self.weights["cross_q_norm"][i],
                      spec.norm_eps)  # fmt: skip
        q = (q * spec.attention_scale).astype(self.dtype)
        tiles = self._tiles(q.reshape(layout.tokens, spec.kv_heads, -1, spec.head_size))
        k, v = self.state["cross_k"][i], self.state["cross_v"][i]

        def body(b: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            blocks = lax.dynamic_index_in_dim(tiles.tables, b, 1, keepdims=False)
            keys = k.at[blocks].get(mode="promise_in_bounds").astype(self.dtype)
            values = v.at[blocks].get(mode="promise_in_bounds").astype(self.dtype)
            # Block 0 holds anything, NaN too: a weight of 0 would not hide it.
            values = jnp.where((blocks > 0)[:, None, None, None], values, 0)
            scores = jnp.einsum(
                "nqkge,ncke->nkgqc", tiles.q, keys, preferred_element_type=jnp.float32
            )
            seen_NQ = (tiles.starts <= b) & (b < tiles.stops)
            return merge(carry, jnp.where(seen_NQ[:, None, None, :, None], scores, MASKED), values)

        shape = (*tiles.q.shape[:1], *tiles.q.shape[2:4], tiles.q.shape[1])
        top = jnp.full((*shape, 1), MASKED, jnp.float32)
        start = (top, jnp.zeros_like(top), jnp.zeros(tiles.q.shape, jnp.float32))
        is_ragged = layout.family == "step"
        count = jnp.max(tiles.stops) if is_ragged else layout.cross_blocks
        _, total, out = lax.fori_loop(0, count, body, start)
        out = out / jnp.maximum(jnp.moveaxis(total, 3, 1), 1e-30)
        return tiles.back(out).reshape(layout.tokens, -1).astype(self.dtype)

    def _tiles(self, q_TKGE: Array) -> _Tiles:
        """Queries by tile of one sequence each, as self-attention has them."""
        at, layout, meta = self.layout.slices, self.layout, self.meta
        tables_SM = meta[at["cross_tables"]].reshape(layout.rows, layout.cross_blocks)
        starts_T, stops_T = meta[at["cross_from"]], meta[at["cross_to"]]
        if layout.family != "step":
            rows = (layout.rows, -1)
            return _Tiles(
                q_TKGE.reshape(*rows, *q_TKGE.shape[1:]), starts_T.reshape(rows),
                stops_T.reshape(rows), tables_SM, lambda x: x.reshape(q_TKGE.shape),
            )  # fmt: skip
        own = cut(meta, layout)

        def pick(x: Array, places: Array) -> Array:
            return x.at[places].get(mode="promise_in_bounds")

        def back(x: Array) -> Array:
            found: Array = x.at[own.tile_T, own.slot_T].get(mode="promise_in_bounds")
            return found

        return _Tiles(
            pick(q_TKGE, own.tokens), pick(starts_T, own.tokens), pick(stops_T, own.tokens),
            pick(tables_SM, own.sequences), back,
        )  # fmt: skip


@dataclass(frozen=True)
class _Tiles:
    """Queries [N, Q, K, G, E], their runs of blocks [N, Q], and each tile's blocks [N, M]."""

    q: Array
    starts: Array
    stops: Array
    tables: Array
    back: Callable[[Array], Array]
