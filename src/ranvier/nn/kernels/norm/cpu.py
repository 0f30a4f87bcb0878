"""RMS norm on the CPU kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["rms_norm"]


def rms_norm(
    x_TD: Array,
    w_LD: Array,
    layer: Array,
    count: Array,
    *,
    eps: float,
    residual: Array | None = None,
) -> Array:
    """As the reference; the first count[0] rows of the result are defined."""
    struct: Any = jax.ShapeDtypeStruct
    call: Any = jax.ffi.ffi_call("ranvier_norm", struct(x_TD.shape, jnp.float32))
    none = jnp.zeros((0, 0), jnp.float32)
    added = none if residual is None else residual
    out: Array = call(x_TD, w_LD, layer, count, added, eps=np.float32(eps))
    return out
