"""The head's forward pass as training sees it: whole rows, and several draft steps unrolled.

EAGLE-3's training-time test. At step s the head's input at position i is its own output of step
s - 1 at position i - 1, and it attends to what serving would have in its cache: entries made of
the target's features up to position i - s, then its own of steps 1 to s. One set of weights serves
every step, as in serving (nn/eagle.py, which the tests compare with this).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ranvier.models.eagle import EagleSpec
from ranvier.nn import rope

__all__ = ["Params", "Unroll"]

Params = Mapping[str, Array]
MASKED = -1e30


@dataclass(frozen=True)
class Unroll:
    """The static side of a head in training; `spec` is what is saved."""

    spec: EagleSpec
    steps: int

    def outputs(self, params: Params, features_BTF: Array, embeds_BTD: Array) -> list[Array]:
        """The stream after the layer at each draft step, [B, T, D] each.

        Shapes: features: of the token at each position; embeds: of the token after it.
        """
        x_BTD = self._fuse(params, features_BTF) if self.spec.is_eagle3 else features_BTF
        keys: list[tuple[Array, Array]] = []
        found: list[Array] = []
        for step in range(self.steps):
            if step:
                x_BTD = _shift(found[-1], 1)
            mixed, residual = self._inputs(params, x_BTD, embeds_BTD)
            q, k, v = self._qkv(params, mixed)
            keys.append((k, v))
            out_BTO = self._attend(q, keys)
            found.append(self._mlp(params, residual + out_BTO @ params["o"]))
        return found

    def logits(self, params: Params, hidden_BTD: Array, head_VD: Array) -> Array:
        """Logits [B, T, V] over the draft vocabulary."""
        if self.spec.is_eagle3:
            hidden_BTD = self._norm(hidden_BTD, params["norm"])
        return hidden_BTD @ head_VD.T

    def _fuse(self, params: Params, features_BTF: Array) -> Array:
        return features_BTF @ params["fc"]

    def _inputs(self, params: Params, x_BTD: Array, embeds_BTD: Array) -> tuple[Array, Array]:
        """What goes into q, k and v, and the residual beside it."""
        if not self.spec.is_eagle3:
            mixed = jnp.concatenate([embeds_BTD, x_BTD], axis=-1) @ params["fc"]
            return mixed, mixed
        embeds = self._norm(embeds_BTD, params["attn_norm"])
        hidden = self._norm(x_BTD, params["hidden_norm"])
        residual = hidden if self.spec.norm_before_residual else x_BTD
        return jnp.concatenate([embeds, hidden], axis=-1), residual

    def _qkv(self, params: Params, mixed: Array) -> tuple[Array, Array, Array]:
        own = self.spec.decoder
        heads, kv_heads, size = own.heads, own.kv_heads, own.head_size
        parts = (mixed @ params["qkv"]).reshape(*mixed.shape[:2], heads + 2 * kv_heads, size)
        q, k, v = jnp.split(parts, [heads, heads + kv_heads], axis=2)
        inv_freq = jnp.asarray([own.ropes[0].inv_freq], jnp.float32)
        scale = jnp.asarray([own.ropes[0].scale], jnp.float32)
        angles = rope.tables(jnp.arange(mixed.shape[1]), inv_freq, scale)[0]
        turn: Any = jax.vmap(lambda x: rope.rotate(x, angles))
        return turn(q) * own.attention_scale, turn(k), v

    def _attend(self, q: Array, keys: list[tuple[Array, Array]]) -> Array:
        """Attention of the last step in `keys`; output [B, T, H * E]."""
        step, (batch, tokens, heads, size) = len(keys) - 1, q.shape
        kv_heads = self.spec.decoder.kv_heads
        q = q.reshape(batch, tokens, kv_heads, heads // kv_heads, size)
        first_k, first_v = keys[0]
        scores = jnp.einsum("btkge,bske->btkgs", q, first_k)
        places = jnp.arange(tokens)
        is_seen = places[None, :] <= places[:, None] - step
        parts = [jnp.where(is_seen[None, :, None, None, :], scores, MASKED)]
        for own, (k, _) in enumerate(keys[1:], 1):
            part = jnp.einsum("btkge,btke->btkg", q, _shift(k, step - own))
            parts.append(part[..., None])
        weights = jax.nn.softmax(jnp.concatenate(parts, axis=-1), axis=-1)
        out = jnp.einsum("btkgs,bske->btkge", weights[..., :tokens], first_v)
        for own, (_, v) in enumerate(keys[1:], 1):
            part = weights[..., tokens + own - 1, None]
            out = out + part * _shift(v, step - own)[:, :, :, None, :]
        return out.reshape(batch, tokens, heads * size)

    def _mlp(self, params: Params, x_BTD: Array) -> Array:
        y = self._norm(x_BTD, params["mlp_norm"])
        gate = jax.nn.silu(y @ params["gate"])
        return x_BTD + (gate * (y @ params["up"])) @ params["down"]

    def _norm(self, x: Array, weight: Array) -> Array:
        mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean + self.spec.decoder.norm_eps) * weight


def _shift(x: Array, count: int) -> Array:
    """x with every position moved `count` places later; zeros come in."""
    if not count:
        return x
    pad: list[Any] = [(0, 0)] * x.ndim
    pad[1] = (count, 0)
    return jnp.pad(x, pad)[:, : x.shape[1]]
