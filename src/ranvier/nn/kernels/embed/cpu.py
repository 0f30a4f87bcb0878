"""Embedding rows out of the packed head, which the model shares with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ranvier.nn.kernels.linear import Quantised, Weight

__all__ = ["embed"]


def embed(weight: Weight, ids_T: Array, *, hidden: int, scale: float) -> Array:
    """Rows of tokens in f32, times scale.

    Shapes: weight packed [1, V/16, I/2, 16, 2] in bf16, [1, V/16, I, 16] in f32, or Quantised;
    result [T, D].
    """
    if isinstance(weight, Quantised):
        struct: Any = jax.ShapeDtypeStruct
        result = struct((ids_T.shape[0], hidden), jnp.float32)
        call: Any = jax.ffi.ffi_call("ranvier_quantised_rows", result)
        out: Array = call(ids_T, *weight, scale=np.float32(scale))
        return out
    rows = weight[0].at[ids_T >> 4, :, ids_T & 15].get(mode="promise_in_bounds")
    x_TD = rows.reshape(ids_T.shape[0], -1)[:, :hidden].astype(jnp.float32)
    return x_TD if scale == 1.0 else x_TD * jnp.float32(scale)
