"""RMS norm in plain JAX, in f32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["normalise", "rms_norm"]


def normalise(x_TD: Array, w_D: Array, eps: float) -> Array:
    """Scale each row to unit mean square, times w."""
    mean_T1 = jnp.mean(jnp.square(x_TD), axis=-1, keepdims=True)
    return x_TD * lax.rsqrt(mean_T1 + eps) * w_D[None, :]


def rms_norm(
    x_TD: Array,
    w_LD: Array,
    layer: Array,
    count: Array,
    *,
    eps: float,
    residual: Array | None = None,
) -> Array:
    """Norm the rows with w[layer]; add `residual` [T, D] when given. f32 in and out."""
    del count
    w_D = lax.dynamic_index_in_dim(w_LD, layer[0], 0, keepdims=False)
    y_TD = normalise(x_TD.astype(jnp.float32), w_D, eps)
    return y_TD if residual is None else residual + y_TD
