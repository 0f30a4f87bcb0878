"""A vision transformer's blocks: one scanned body for every family.

Works on pictures [N, P, D]: N tiles that do not see each other, P patches each. Who sees whom
within a tile is data: labels of the patches and a rule over two labels, which says what is added to
the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.nn.kernels.linear import weight_of
from ranvier.nn.kernels.norm.reference import normalise
from ranvier.nn.kernels.table import Kernels

__all__ = [
    "TILE_MAX", "WHOLE_MAX", "Activation", "See", "Tower", "Work", "activate", "attend",
    "layer_norm", "see_copies", "see_same",
]  # fmt: skip

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
See = Callable[[Array, Array], Array]
"""Of a query's and a key's label, what is added to their score: 0, or MASKED for the unseen."""
MASKED = -1e30
TILE_MAX = 256
"""Queries that attention takes at once, where a picture has more; bounds the scores in memory."""
WHOLE_MAX = 1024
"""Patches up to which attention takes all queries at once."""


def see_same(query: Array, key: Array) -> Array:
    """Patches of one label see each other: windows, frames, padding apart from the rest."""
    return jnp.where(query == key, 0.0, MASKED)


def see_copies(query: Array, key: Array) -> Array:
    """Label 0 is a patch that sees all. Label c > 0 is padding: it sees patches alone, and stands
    for c that are equal, so each of those weighs c times as much as it would by itself.
    """
    copies = jnp.log(jnp.maximum(key, 1).astype(jnp.float32))
    return jnp.where((query > 0) & (key > 0), MASKED, copies)


@dataclass(frozen=True)
class Work:
    """What every function of an encoder needs: its weights by name, and the target's kernels."""

    weights: Mapping[str, Array]
    kernels: Kernels
    sum: Callable[[Array], Array] | None = None
    """Over cores, each of which has a part of the towers' heads and MLP."""

    def linear(
        self, name: str, x: Array, outputs: int, layer: Array | None = None, *, bias: bool = False
    ) -> Array:
        """Apply a linear to the last axis of x: f32 [..., outputs]."""
        at = jnp.zeros((1,), jnp.int32) if layer is None else layer
        rows = x.reshape(-1, x.shape[-1])
        y = self.kernels.linear(
            rows, weight_of(self.weights, name), at, jnp.full((1,), rows.shape[0], jnp.int32),
            outputs=outputs, bias=self.weights[f"{name}_bias"] if bias else None,
            out_dtype=jnp.float32,
        )  # fmt: skip
        return y.reshape(*x.shape[:-1], outputs)

    def joined(self, name: str, x: Array, outputs: int, layer: Array, *, bias: bool) -> Array:
        """A linear whose inputs are cut over cores: the parts' sum, then the bias, once."""
        y = self.linear(name, x, outputs, layer)
        y = y if self.sum is None else self.sum(y)
        return y + self.plain(f"{name}_bias", layer) if bias else y

    def plain(self, name: str, layer: Array | None = None) -> Array:
        """One row of a plain array: that of a layer, or the first."""
        if layer is None:
            return self.weights[name][0]
        row: Array = lax.dynamic_index_in_dim(self.weights[name], layer[0], 0, keepdims=False)
        return row

    def norm(self, name: str, x: Array, eps: float, layer: Array | None = None) -> Array:
        """Layer norm, or RMS norm where the checkpoint has no bias for it."""
        if f"{name}_bias" in self.weights:
            return layer_norm(x, self.plain(name, layer), self.plain(f"{name}_bias", layer), eps)
        rows = x.reshape(-1, x.shape[-1])
        return normalise(rows, self.plain(name, layer), eps).reshape(x.shape)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Scale each row to zero mean and unit variance, times weight, plus bias."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + eps) * weight + bias


def activate(x: Array, kind: Activation) -> Array:
    """The activation of a name; gelu by erf, for which erfc would not be legal everywhere."""
    if kind == "gelu":
        return 0.5 * x * (1.0 + lax.erf(x * jnp.float32(0.5**0.5)))
    if kind == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=True)


@dataclass(frozen=True)
class Tower:
    """Numbers of a transformer over patches; `name` is the prefix of its weights.

    `is_gated`: the MLP is silu(gate) * up. `has_gates`: attention and MLP are scaled by tanh of a
    number a layer.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    eps: float
    activation: Activation
    is_gated: bool = False
    has_qkv_bias: bool = True
    has_o_bias: bool = True
    has_mlp_bias: bool = True
    has_gates: bool = False
    see: See = see_same
    cores: int = 1
    """That share the heads and the MLP: `heads` and `intermediate` are one core's."""

    @property
    def head_size(self) -> int:
        return self.hidden // (self.heads * self.cores)

    def run(
        self,
        work: Work,
        x_NPD: Array,
        labels: Array | None = None,
        turn: Array | None = None,
        keep: Sequence[int] = (),
    ) -> tuple[Array, list[Array]]:
        """All layers; returns the last hidden state and those behind the layers of `keep`.

        Shapes: labels int32 [K, N, P], of which a layer takes `<name>.labels`[layer] (or the only
        one); None: all see all. turn [2, P, E/2]: cosines and sines.
        """
        kept = {}
        stops = sorted({*(layer + 1 for layer in keep), self.layers})
        start = 0
        for stop in stops:
            layers = jnp.arange(start, stop, dtype=jnp.int32)

            def body(x: Array, layer: Array) -> tuple[Array, None]:
                return self._block(work, x, layer[None], labels, turn), None

            x_NPD, _ = lax.scan(body, x_NPD, layers)
            kept[stop - 1] = x_NPD
            start = stop
        return x_NPD, [kept[layer] for layer in keep]

    def _block(
        self, work: Work, x: Array, layer: Array, labels: Array | None, turn: Array | None
    ) -> Array:
        with jax.named_scope("attention"):
            own = None if labels is None else self._labels(work, labels, layer)
            y = self._attend(work, work.norm(f"{self.name}.norm1", x, self.eps, layer), layer,
                             own, turn)  # fmt: skip
            x = x + self._gate(work, "attn_gate", y, layer)
        with jax.named_scope("mlp"):
            y = self._mlp(work, work.norm(f"{self.name}.norm2", x, self.eps, layer), layer)
            return x + self._gate(work, "mlp_gate", y, layer)

    def _labels(self, work: Work, labels: Array, layer: Array) -> Array:
        if labels.shape[0] == 1:
            return labels[0]
        at = work.plain(f"{self.name}.labels", layer)
        own: Array = lax.dynamic_index_in_dim(labels, at, 0, keepdims=False)
        return own

    def _gate(self, work: Work, name: str, y: Array, layer: Array) -> Array:
        return y * jnp.tanh(work.plain(f"{self.name}.{name}", layer)) if self.has_gates else y

    def _mlp(self, work: Work, x: Array, layer: Array) -> Array:
        size, bias = self.intermediate, self.has_mlp_bias
        up = work.linear(f"{self.name}.up", x, size, layer, bias=bias)
        if self.is_gated:
            gate = work.linear(f"{self.name}.gate", x, size, layer, bias=bias)
            inner = activate(gate, self.activation) * up
        else:
            inner = activate(up, self.activation)
        return self._project(work, "down", inner, layer, bias=bias)

    def _attend(
        self, work: Work, x: Array, layer: Array, labels: Array | None, turn: Array | None
    ) -> Array:
        heads, size = self.heads, self.head_size
        qkv = work.linear(f"{self.name}.qkv", x, 3 * heads * size, layer, bias=self.has_qkv_bias)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * heads, size), 3, axis=2)
        if turn is not None:
            q, k = _rotate(q, turn), _rotate(k, turn)
        dtype = _dtype(work, f"{self.name}.qkv")
        q, k, v = (q * size**-0.5).astype(dtype), k.astype(dtype), v.astype(dtype)
        out = attend(q, k, v, labels, self.see)
        return self._project(work, "o", out, layer, bias=self.has_o_bias)

    def _project(self, work: Work, name: str, x: Array, layer: Array, *, bias: bool) -> Array:
        """Back to the hidden state, of all cores' parts where the tower is cut."""
        project = work.joined if self.cores > 1 else work.linear
        return project(f"{self.name}.{name}", x, self.hidden, layer, bias=bias)


def _dtype(work: Work, name: str) -> Any:
    """Of products: the weights' own; where those are whole numbers, bfloat16."""
    weight = weight_of(work.weights, name)
    return weight.dtype if isinstance(weight, jax.Array) else jnp.bfloat16


def _rotate(x_NPHE: Array, turn: Array) -> Array:
    cos, sin = turn[0][None, :, None, :], turn[1][None, :, None, :]
    first, second = jnp.split(x_NPHE, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: Array, k: Array, v: Array, labels: Array | None, see: See) -> Array:
    """Full attention within each tile: f32 [N, P, H*E]; queries in tiles where there are many."""
    count, patches, heads, size = q.shape
    step = patches if patches <= WHOLE_MAX else _tile(patches)
    if step == patches:
        return _weigh(q, k, v, labels, labels, see).reshape(count, patches, heads * size)
    cuts = patches // step
    tiles = jnp.moveaxis(q.reshape(count, cuts, step, heads, size), 1, 0)
    none = jnp.zeros((count, patches), jnp.int32)
    marks = none if labels is None else labels
    own = jnp.moveaxis(marks.reshape(count, cuts, step), 1, 0)

    def body(carry: None, tile: tuple[Array, Array]) -> tuple[None, Array]:
        return carry, _weigh(tile[0], k, v, tile[1], marks, see)

    _, out = lax.scan(body, None, (tiles, own))
    return jnp.moveaxis(out, 0, 1).reshape(count, patches, heads * size)


def _tile(patches: int) -> int:
    """The largest even cut of the queries below the bound."""
    return max(size for size in range(1, TILE_MAX + 1) if patches % size == 0)


def _weigh(
    q: Array, k: Array, v: Array, own: Array | None, labels: Array | None, see: See
) -> Array:
    """Attention of queries [N, Q, H, E] over all keys: f32 [N, Q, H, E]."""
    scores = jnp.einsum("nqhe,nphe->nhqp", q, k, preferred_element_type=jnp.float32)
    if own is not None and labels is not None:
        scores = scores + see(own[:, :, None], labels[:, None, :])[:, None]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    probs = (weights / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
    return jnp.einsum("nhqp,nphe->nqhe", probs, v, preferred_element_type=jnp.float32)
