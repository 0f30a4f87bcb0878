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
    struct: Any = jax.ShapeDtypeStruct
    is_quantised = isinstance(weight, Quantised)
    name = "ranvier_quantised_rows" if is_quantised else "ranvier_rows"
    call: Any = jax.ffi.ffi_call(name, struct((ids_T.shape[0], hidden), jnp.float32))
    out: Array = call(ids_T, *(weight if is_quantised else (weight,)), scale=np.float32(scale))
    return out
