"""Paged attention in plain JAX: caches [L, N, Bt, K, E], gathers instead of pointers.

The slow twin of the kernels, and the program of targets without one. Indices are always in range:
padding tokens write to the garbage block 0.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn.kernels.attention import AttentionSpec, CacheShapes
from ranvier.nn.rope import rotate

__all__ = ["attention", "cache_shapes"]

MASKED = -1e30


def cache_shapes(
    layers: int, spec: AttentionSpec, blocks: int, block_tokens: int, dtype: Any
) -> CacheShapes:
    """Shapes of k and v: [L, N, Bt, K, E] both."""
    del dtype
    shape = (layers, blocks, block_tokens, spec.kv_heads, spec.head_size)
    return CacheShapes(shape, shape)


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
    """Rope q and k, write k and v of the live tokens, attend. Returns (out [T, H*E], k, v).

    Shapes: qkv [T, (H+2K)*E] f32; cos_sin [P, 2, T, E/2]; windows, ropes int32 [L]; norms [L, E].
    Donates: k and v when the caller's program does.
    """
    q_THE, k_TKE, v_TKE = _split(qkv_TO, spec)
    if q_norm is not None and k_norm is not None:
        q_THE = _head_norm(q_THE, q_norm, layer, spec.eps)
        k_TKE = _head_norm(k_TKE, k_norm, layer, spec.eps)
    angles = cos_sin[ropes[layer[0]]]
    q_THE, k_TKE = rotate(q_THE, angles), rotate(k_TKE, angles)
    tables_SM = meta[layout.slices["block_tables"]].reshape(layout.rows, layout.blocks)
    k = _write(k, k_TKE, layer, meta, layout)
    v = _write(v, v_TKE, layer, meta, layout)
    k_SCKE = _gather(k, layer, tables_SM)
    v_SCKE = _gather(v, layer, tables_SM)
    out_TO = _attend(q_THE, k_SCKE, v_SCKE, _mask(meta, layout, windows[layer[0]], k), spec)
    return out_TO.astype(k.dtype), k, v


def _split(qkv_TO: Array, spec: AttentionSpec) -> tuple[Array, Array, Array]:
    tokens, size = qkv_TO.shape[0], spec.head_size
    q_end = spec.heads * size
    k_end = q_end + spec.kv_heads * size
    return (
        qkv_TO[:, :q_end].reshape(tokens, spec.heads, size),
        qkv_TO[:, q_end:k_end].reshape(tokens, spec.kv_heads, size),
        qkv_TO[:, k_end:].reshape(tokens, spec.kv_heads, size),
    )


def _head_norm(x_THE: Array, w_LE: Array, layer: Array, eps: float) -> Array:
    mean = jnp.mean(jnp.square(x_THE), axis=-1, keepdims=True)
    return x_THE * lax.rsqrt(mean + eps) * w_LE[layer[0]][None, None, :]


def _token_blocks(meta: Array, layout: MetaLayout, block_tokens: int) -> tuple[Array, Array]:
    """Block id and offset of each token; padding tokens get the garbage block."""
    positions_T = meta[layout.slices["positions"]]
    seq_T = meta[layout.slices["token_seq"]]
    tables = meta[layout.slices["block_tables"]]
    block_T = tables[seq_T * layout.blocks + positions_T // block_tokens]
    is_live_T = jnp.arange(layout.tokens, dtype=jnp.int32) < meta[0]
    return jnp.where(is_live_T, block_T, 0), positions_T % block_tokens


def _write(cache: Array, x_TKE: Array, layer: Array, meta: Array, layout: MetaLayout) -> Array:
    block_T, offset_T = _token_blocks(meta, layout, cache.shape[2])
    return cache.at[layer[0], block_T, offset_T].set(
        x_TKE.astype(cache.dtype), mode="promise_in_bounds"
    )


def _gather(cache: Array, layer: Array, tables_SM: Array) -> Array:
    """Each sequence's blocks as one run of keys [S, C, K, E], C = MB * Bt."""
    blocks = cache.at[layer[0], tables_SM].get(mode="promise_in_bounds")
    rows = tables_SM.shape[0]
    return blocks.reshape(rows, -1, cache.shape[3], cache.shape[4])


def _mask(meta: Array, layout: MetaLayout, window: Array, cache: Array) -> tuple[Array, Array]:
    """(sequence of each token [T], which keys it sees [T, C])."""
    positions_T = meta[layout.slices["positions"]]
    keys_C = jnp.arange(layout.blocks * cache.shape[2], dtype=jnp.int32)
    behind_TC = positions_T[:, None] - keys_C[None, :]
    is_seen = (behind_TC >= 0) & ((window == 0) | (behind_TC < window))
    return meta[layout.slices["token_seq"]], is_seen


def _attend(
    q_THE: Array, k_SCKE: Array, v_SCKE: Array, mask: tuple[Array, Array], spec: AttentionSpec
) -> Array:
    seq_T, is_seen_TC = mask
    tokens, group = q_THE.shape[0], spec.heads // spec.kv_heads
    q = (q_THE * spec.scale).astype(k_SCKE.dtype)
    q_TKGE = q.reshape(tokens, spec.kv_heads, group, spec.head_size)
    k_TCKE, v_TCKE = k_SCKE[seq_T], v_SCKE[seq_T]
    scores = jnp.einsum("tkge,tcke->tkgc", q_TKGE, k_TCKE, preferred_element_type=jnp.float32)
    scores = jnp.where(is_seen_TC[:, None, None, :], scores, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    v_TCKE = jnp.where(is_seen_TC[:, :, None, None], v_TCKE, 0)
    probs = (weights / total).astype(v_TCKE.dtype)
    out = jnp.einsum("tkgc,tcke->tkge", probs, v_TCKE, preferred_element_type=jnp.float32)
    return out.reshape(tokens, spec.heads * spec.head_size)
