"""Embedding rows out of a linear weight [1, I=D, O=V]."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

__all__ = ["embed"]


def embed(weight: Array, ids_T: Array, *, hidden: int, scale: float) -> Array:
    """Take columns `ids` of the packed head as f32 [T, D], times scale. ids must be in range."""
    rows_DT = weight.at[0, :, ids_T].get(mode="promise_in_bounds")
    return rows_DT[:, :hidden].astype(jnp.float32) * scale
