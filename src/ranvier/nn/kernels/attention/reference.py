"""Paged attention in plain JAX: caches [L, N, Bt, K, E], gathers instead of pointers.

The slow twin of the kernels, and the program of targets without one. Tokens are taken in tiles,
each of one sequence, so that a sequence's keys are gathered once a tile and not once a token: a
prefill is one tile, a decode row is a tile of one token, a ragged step is cut into tiles and walks
its keys in chunks up to the longest live context. Indices are always in range: padding tokens write
to the garbage block 0. Prefill and decode keep within the rules of targets/neuron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout
from ranvier.nn.kernels.attention import AttentionSpec, CacheShapes
from ranvier.nn.kernels.attention.codes import SCALE_BYTES, cache_dtype, decode, encode
from ranvier.nn.rope import rotate

__all__ = ["MASKED", "Cut", "attention", "cache_shapes", "cut", "merge"]

MASKED = -1e30
TILE_TOKENS_MAX = 64
CHUNK_KEYS = 512
"""Keys that a ragged step takes at once; bounds the scores held in memory."""


def cache_shapes(
    layers: int,
    spec: AttentionSpec,
    blocks: int,
    block_tokens: int,
    dtype: Any,
    cache: str = "auto",
) -> CacheShapes:
    """Shapes of k and v: [L, N, Bt, K, E] both; int8: [L, N, Bt, K, E + 4], the scale at the end.

    `cache`: auto (of `dtype`, the activations'), fp8 or int8.
    """
    kind = cache_dtype(cache, dtype)
    size = spec.head_size + (SCALE_BYTES if kind == jnp.int8 else 0)
    shape = (layers, blocks, block_tokens, spec.kv_heads, size)
    return CacheShapes(shape, shape, kind)


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
    angles = _pick(cos_sin, _pick(ropes, layer[0]))
    q_THE, k_TKE = rotate(q_THE, angles), rotate(k_TKE, angles)
    k = _write(k, k_TKE, layer, meta, layout)
    v = _write(v, v_TKE, layer, meta, layout)
    dtype = spec.out_dtype or k.dtype
    q = (q_THE * spec.scale).astype(dtype)
    q_TKGE = q.reshape(layout.tokens, spec.kv_heads, -1, spec.head_size)
    cache = _Cache(k, v, layer[0], layout.block_keys or k.shape[2], dtype)
    window = _pick(windows, layer[0])
    attend = _ragged if layout.family == "step" else _whole
    out_TKGE = attend(q_TKGE, cache, meta, layout, window)
    return out_TKGE.reshape(layout.tokens, -1).astype(dtype), k, v


@dataclass(frozen=True)
class _Cache:
    """Both caches at one layer; `keys` is how many tokens of a block are read, as `dtype`."""

    k: Array
    v: Array
    layer: Array
    keys: int
    dtype: Any

    def read(self, cache: Array, tables_NM: Array) -> Array:
        """The blocks of each table as one run of keys [N, M * keys, K, E]."""
        tiles, blocks = tables_NM.shape
        layers_NM = jnp.broadcast_to(self.layer, tables_NM.shape)
        found = lax.gather(
            cache,
            jnp.stack([layers_NM, tables_NM], axis=-1),
            lax.GatherDimensionNumbers(
                offset_dims=(2, 3, 4), collapsed_slice_dims=(0, 1), start_index_map=(0, 1)
            ),
            slice_sizes=(1, 1, self.keys, *cache.shape[3:]),
            mode="promise_in_bounds",
        )
        return decode(found.reshape(tiles, blocks * self.keys, *cache.shape[3:]), self.dtype)


@dataclass(frozen=True)
class _Tiles:
    """Queries by tile [N, Q, K, G, E], their positions [N, Q], each tile's context length [N].

    `sees`, where it is not the positions: the last position that each query attends to.
    """

    q: Array
    positions: Array
    contexts: Array
    sees: Array | None = None


def _whole(q_TKGE: Array, cache: _Cache, meta: Array, layout: MetaLayout, window: Array) -> Array:
    """Prefill or decode: every tile's whole context bucket at once."""
    rows = layout.rows
    tables_NM = meta[layout.slices["block_tables"]].reshape(rows, layout.blocks)
    positions_NQ = meta[layout.slices["positions"]].reshape(rows, -1)
    q = q_TKGE.reshape(rows, -1, *q_TKGE.shape[1:])
    sees = _sees(meta, layout)
    sees = None if sees is None else sees.reshape(rows, -1)
    tiles = _Tiles(q, positions_NQ, meta[layout.slices["context_lens"]], sees)
    scores, values = _scores(tiles, cache, tables_NM, jnp.int32(0), window)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    probs = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return _weigh(probs, values)


def _ragged(q_TKGE: Array, cache: _Cache, meta: Array, layout: MetaLayout, window: Array) -> Array:
    """Any mix: tiles of one sequence each, softmax merged over ascending chunks of keys."""
    own = cut(meta, layout)
    at = layout.slices
    per_chunk = max(CHUNK_KEYS // cache.keys, 1)
    padding = -layout.blocks % per_chunk
    tables_SM = meta[at["block_tables"]].reshape(layout.rows, layout.blocks)
    tables_NM = jnp.pad(_pick(tables_SM, own.sequences), ((0, 0), (0, padding)))
    contexts_S, sees = meta[at["context_lens"]], _sees(meta, layout)
    tiles = _Tiles(
        _pick(q_TKGE, own.tokens), _pick(meta[at["positions"]], own.tokens),
        _pick(contexts_S, own.sequences),
        None if sees is None else _pick(sees, own.tokens),
    )  # fmt: skip
    chunk_keys = per_chunk * cache.keys

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tables = lax.dynamic_slice_in_dim(tables_NM, i * per_chunk, per_chunk, 1)
        scores, values = _scores(tiles, cache, tables, i * chunk_keys, window)
        return merge(carry, scores, values)

    shape = (*tiles.q.shape[:1], *tiles.q.shape[2:4], tiles.q.shape[1])
    top = jnp.full((*shape, 1), MASKED, jnp.float32)
    start = (top, jnp.zeros_like(top), jnp.zeros(tiles.q.shape, jnp.float32))
    chunks = (jnp.max(contexts_S) + chunk_keys - 1) // chunk_keys
    _, total, out = lax.fori_loop(0, chunks, body, start)
    out = out / jnp.maximum(jnp.moveaxis(total, 3, 1), 1e-30)
    out_TKGE: Array = out.at[own.tile_T, own.slot_T].get(mode="promise_in_bounds")
    return out_TKGE


@dataclass(frozen=True)
class Cut:
    """How the tokens of a ragged step lie in tiles: per tile, and per token."""

    sequences: Array
    """Sequence of each tile [N]."""
    tokens: Array
    """Token of each place [N, Q]; places without one repeat a token in range."""
    tile_T: Array
    slot_T: Array


def cut(meta: Array, layout: MetaLayout) -> Cut:
    """Tiles of one sequence each over the tokens of a ragged step."""
    at, tokens, rows = layout.slices, layout.tokens, layout.rows
    size = 1
    while size * 2 <= min(TILE_TOKENS_MAX, tokens // rows):
        size *= 2
    count = rows + (tokens - rows) // size
    starts_S = meta[at["query_starts"]]
    tiles_S = (starts_S[1:] - starts_S[:-1] + size - 1) // size
    # No cumulative sum: rows are few, and a masked sum lowers to the same on every target.
    is_before = jnp.arange(rows)[None, :] < jnp.arange(rows)[:, None]
    first_S = jnp.sum(jnp.where(is_before, tiles_S[None, :], 0), axis=1)
    tile_N = jnp.arange(count, dtype=jnp.int32)
    is_past = (first_S + tiles_S)[None, :] <= tile_N[:, None]
    seq_N = jnp.minimum(jnp.sum(is_past.astype(jnp.int32), axis=1), rows - 1)
    begin_N = _pick(starts_S, seq_N) + (tile_N - _pick(first_S, seq_N)) * size
    token_NQ = begin_N[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
    seq_T = meta[at["token_seq"]]
    inner_T = jnp.arange(tokens, dtype=jnp.int32) - _pick(starts_S, seq_T)
    tile_T = jnp.clip(_pick(first_S, seq_T) + inner_T // size, 0, count - 1)
    return Cut(seq_N, jnp.clip(token_NQ, 0, tokens - 1), tile_T, jnp.maximum(inner_T, 0) % size)


def _scores(
    tiles: _Tiles, cache: _Cache, tables_NM: Array, start: Array, window: Array
) -> tuple[Array, Array]:
    """Masked scores f32 [N, K, G, Q, C] of the tables' keys, and their values [N, C, K, E]."""
    k_NCKE = cache.read(cache.k, tables_NM)
    v_NCKE = cache.read(cache.v, tables_NM)
    scores = jnp.einsum("nqkge,ncke->nkgqc", tiles.q, k_NCKE, preferred_element_type=jnp.float32)
    keys_C = start + jnp.arange(k_NCKE.shape[1], dtype=jnp.int32)
    behind_NQC = tiles.positions[:, :, None] - keys_C[None, None, :]
    ahead_NQC = behind_NQC if tiles.sees is None else tiles.sees[:, :, None] - keys_C[None, None, :]
    is_seen_NQC = (ahead_NQC >= 0) & ((window == 0) | (behind_NQC < window))
    # What no step has written may be anything, NaN too: a weight of 0 would not hide it.
    is_written_NC = keys_C[None, :] < tiles.contexts[:, None]
    v_NCKE = jnp.where(is_written_NC[:, :, None, None], v_NCKE, 0)
    is_seen_NQC &= is_written_NC[:, None, :]
    return jnp.where(is_seen_NQC[:, None, None], scores, MASKED), v_NCKE


def _sees(meta: Array, layout: MetaLayout) -> Array | None:
    """The last position that each token attends to, where that may be behind its own."""
    return meta[layout.slices["sees_to"]] if "sees_to" in layout.slices else None


def merge(
    carry: tuple[Array, Array, Array], scores: Array, values: Array
) -> tuple[Array, Array, Array]:
    """One step of the online softmax."""
    top, total, out_NQKGE = carry
    new = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    scale = jnp.exp(top - new)
    weights = jnp.where(scores > MASKED, jnp.exp(scores - new), 0.0)
    total = total * scale + jnp.sum(weights, axis=-1, keepdims=True)
    out = out_NQKGE * jnp.moveaxis(scale, 3, 1) + _weigh(weights, values)
    return new, total, out


def _weigh(weights_NKGQC: Array, v_NCKE: Array) -> Array:
    """Sums of values f32 [N, Q, K, G, E]."""
    return jnp.einsum(
        "nkgqc,ncke->nqkge", weights_NKGQC.astype(v_NCKE.dtype), v_NCKE,
        preferred_element_type=jnp.float32,
    )  # fmt: skip


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
    return x_THE * lax.rsqrt(mean + eps) * _pick(w_LE, layer[0])[None, None, :]


def _pick(x: Array, index: Array) -> Array:
    """x[index] along the first axis; the index is in range."""
    return x.at[index].get(mode="promise_in_bounds")


def _write(cache: Array, x_TKE: Array, layer: Array, meta: Array, layout: MetaLayout) -> Array:
    """Put each live token's x into its block; padding tokens go to the garbage block."""
    positions_T = meta[layout.slices["positions"]]
    seq_T, size = meta[layout.slices["token_seq"]], cache.shape[2]
    tables = meta[layout.slices["block_tables"]]
    block_T = _pick(tables, seq_T * layout.blocks + positions_T // size)
    is_live_T = jnp.arange(layout.tokens, dtype=jnp.int32) < meta[0]
    block_T = jnp.where(is_live_T, block_T, 0)
    return cache.at[layer[0], block_T, positions_T % size].set(
        encode(x_TKE, cache.dtype), mode="promise_in_bounds"
    )
