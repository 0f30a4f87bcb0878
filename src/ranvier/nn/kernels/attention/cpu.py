"""Attention on the CPU kernels: one call ropes, writes k and v in place, and attends.

The cache is laid out for the kernel: keys as lanes in k, values as lanes in v (csrc/attention.h).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ranvier.core.layout import MetaLayout
from ranvier.nn.kernels.attention import AttentionSpec, CacheShapes
from ranvier.nn.kernels.attention.codes import SCALE_BYTES, cache_dtype

__all__ = ["attention", "cache_shapes"]

META_FIELDS = ("token_seq", "positions", "query_starts", "block_tables")
BLOCK_MULTIPLE = 32
"""Keys of one inner step of the kernel; a block holds a multiple of it."""


def cache_shapes(
    layers: int,
    spec: AttentionSpec,
    blocks: int,
    block_tokens: int,
    dtype: Any,
    cache: str = "auto",
) -> CacheShapes:
    """Shapes of k and v for activations of `dtype`; bfloat16's pairs of elements lie together.

    `cache`: auto (of `dtype`), fp8 (a byte an element in the same order) or int8 (one axis of bytes
    a head: codes in that order, then the scales of its tokens).
    """
    assert block_tokens % BLOCK_MULTIPLE == 0, f"block_tokens is {block_tokens}"
    size, head = spec.head_size, (layers, blocks, spec.kv_heads)
    kind = cache_dtype(cache, dtype)
    if kind == jnp.int8:
        whole = (*head, block_tokens * (size + SCALE_BYTES))
        return CacheShapes(whole, whole, kind)
    if jnp.dtype(dtype) == jnp.bfloat16:
        k, v = (block_tokens // 16, size // 2, 16, 2), (block_tokens // 2, size, 2)
        return CacheShapes((*head, *k), (*head, *v), kind)
    return CacheShapes((*head, block_tokens // 16, size, 16), (*head, block_tokens, size), kind)


def attention(
    qkv_TO: Array,
    k: Array,
    v: Array,
    layer: Array,
    meta: Array,
    layout: MetaLayout,
    spec: AttentionSpec,
    *,
    cos_sin: Array,
    windows: Array,
    ropes: Array,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
) -> tuple[Array, Array, Array]:
    """As the reference; rows of padding tokens are undefined.

    Donates: k and v, which the call updates in place; it fails if XLA made a copy of them.
    Cost: reads the keys and values of each sequence once per 16 query heads of a kv head.
    """
    none = jnp.zeros((0, 0), jnp.float32)
    is_flat = k.dtype == jnp.int8
    block_tokens = k.shape[3] // (spec.head_size + SCALE_BYTES) if is_flat else k.shape[3] * 16
    sees = "sees_to" if "sees_to" in layout.slices else "positions"
    offsets = map(layout.offset, (*META_FIELDS, sees))
    numbers = (spec.heads, layout.blocks, block_tokens, *offsets)
    struct: Any = jax.ShapeDtypeStruct
    results = (
        struct((qkv_TO.shape[0], spec.heads * spec.head_size), spec.out_dtype or k.dtype),
        struct(k.shape, k.dtype),
        struct(v.shape, v.dtype),
    )
    call: Any = jax.ffi.ffi_call("ranvier_attention", results, input_output_aliases={1: 1, 2: 2})
    out: tuple[Array, Array, Array] = call(
        qkv_TO,
        k,
        v,
        layer,
        meta,
        cos_sin,
        windows,
        ropes,
        none if q_norm is None else q_norm,
        none if k_norm is None else k_norm,
        numbers=np.asarray(numbers, np.int64),
        scale=np.float32(spec.scale),
        eps=np.float32(spec.eps),
    )
    return out
