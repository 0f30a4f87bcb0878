"""A KV cache narrower than the activations: its dtypes, and k and v as codes and back.

fp8 holds e4m3 of the value itself, saturated at ±448; fp8-240 that of chips whose e4m3 ends at 240.
int8 holds value / scale, with one scale f32 a token and kv head.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["SCALE_BYTES", "cache_dtype", "decode", "encode"]

DTYPES: dict[str, Any] = {
    "fp8": jnp.float8_e4m3fn, "fp8-240": jnp.float8_e4m3, "int8": jnp.int8,
}  # fmt: skip
SCALE_BYTES = 4
"""Of one token and kv head at int8."""
TINIEST = 1e-30
"""A head smaller than this has no int8 scale: it is 0."""


def cache_dtype(cache: str, dtype: Any) -> Any:
    """The elements' dtype of the cache named in DTYPES, or auto (that of the activations)."""
    return jnp.dtype(dtype if cache == "auto" else DTYPES[cache])


def encode(x_TKE: Array, kind: Any) -> Array:
    """x as the reference's cache of dtype `kind` holds it; int8: [T, K, E + 4], scales last."""
    if kind in (jnp.float8_e4m3fn, jnp.float8_e4m3):
        largest = 448.0 if kind == jnp.float8_e4m3fn else 240.0
        x_TKE = jnp.where(x_TKE != x_TKE, 0.0, x_TKE)  # NaN
        return jnp.clip(x_TKE, -largest, largest).astype(kind)
    if kind != jnp.int8:
        return x_TKE.astype(kind)
    x_TKE = jnp.nan_to_num(x_TKE)
    largest_TK1 = jnp.max(jnp.abs(x_TKE), axis=-1, keepdims=True)
    scale_TK1 = jnp.where(largest_TK1 < TINIEST, 0.0, largest_TK1 / 127.0)
    inverse_TK1 = jnp.where(scale_TK1 > 0, 1.0 / scale_TK1, 0.0)
    codes = jnp.clip(jnp.round(x_TKE * inverse_TK1), -127, 127).astype(jnp.int8)
    scales = lax.bitcast_convert_type(scale_TK1[..., 0], jnp.int8)
    return jnp.concatenate([codes, scales], axis=-1)


def decode(found: Array, dtype: Any) -> Array:
    """What `encode` made, as activations of `dtype`: the last axis is E again."""
    if found.dtype != jnp.int8:
        return found.astype(dtype)
    codes, scales = found[..., :-SCALE_BYTES], found[..., -SCALE_BYTES:]
    values = codes.astype(jnp.float32) * lax.bitcast_convert_type(scales, jnp.float32)[..., None]
    return values.astype(dtype)
