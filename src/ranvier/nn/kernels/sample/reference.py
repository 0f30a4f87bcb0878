"""Sampling in plain JAX, within the rules of targets/neuron: no sort, no cumulative sum, no
generator, no variadic reduce, every loop of a fixed count.

Thresholds of top-k and top-p are found by bisection over the order-preserving integer form of the
logits: 32 exact halvings. The draw is a bisection over ids: the first whose prefix holds the mass.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import FLOAT_FIELDS, SEEN_BIT, MetaLayout

__all__ = ["sample"]

NEG = -3.0e38


def sample(
    logits_RV: Array,
    meta: Array,
    layout: MetaLayout,
    edits: Array,
    allowed: Array,
    *,
    top_count: int,
) -> Array:
    """Draw or score one token a row. Returns int32 [R, 3 + 2K], K = top_count.

    Columns: token, rank, log-probability bits, K top ids, K top log-probability bits; the
    log-probabilities are of the raw logits. Order: edits, allowed, temperature, min-p, top-k,
    top-p, then inverse CDF in ascending id with the row's uniform.
    """
    get = _fields(meta, layout)
    raw_RV = logits_RV.astype(jnp.float32)
    edited_RV = _allow(_edit(raw_RV, get, edits), get, allowed)
    greedy_R = _argmax(edited_RV)
    is_greedy_R = get["temperature"] < 1e-5
    drawn_R = _draw(edited_RV, get)
    token_R = jnp.where(is_greedy_R, greedy_R, drawn_R)
    token_R = jnp.where(get["target_ids"] >= 0, get["target_ids"], token_R)
    return _pack(raw_RV, token_R, top_count)


def _fields(meta: Array, layout: MetaLayout) -> dict[str, Array]:
    names = ("top_k", "target_ids", "edit_counts", "flags")
    fields = {name: meta[layout.slices[name]] for name in names}
    for name in FLOAT_FIELDS:
        fields[name] = lax.bitcast_convert_type(meta[layout.slices[name]], jnp.float32)
    return fields


def _edit(logits_RV: Array, get: dict[str, Array], edits_RP3: Array) -> Array:
    rows, vocab = logits_RV.shape
    ids_RP = edits_RP3[:, :, 0]
    is_live_RP = jnp.arange(ids_RP.shape[1])[None, :] < get["edit_counts"][:, None]
    count_RP = (edits_RP3[:, :, 1] & ((1 << SEEN_BIT) - 1)).astype(jnp.float32)
    is_seen_RP = (edits_RP3[:, :, 1] >> SEEN_BIT) > 0
    bias_RP = lax.bitcast_convert_type(edits_RP3[:, :, 2], jnp.float32)
    row_R1 = jnp.arange(rows, dtype=jnp.int32)[:, None]
    x = logits_RV.at[row_R1, ids_RP].get(mode="promise_in_bounds")
    repetition = get["repetition"][:, None]
    penalised = jnp.where(x > 0, x / repetition, x * repetition)
    y = jnp.where(is_seen_RP, penalised, x)
    y = y - get["frequency"][:, None] * count_RP
    y = y - get["presence"][:, None] * (count_RP > 0) + bias_RP
    # Padding entries go to a column of their own, so that they never collide with a live id.
    padded = jnp.concatenate([logits_RV, jnp.zeros((rows, 1), jnp.float32)], axis=1)
    ids_RP = jnp.where(is_live_RP, ids_RP, vocab)
    return padded.at[row_R1, ids_RP].set(y, mode="promise_in_bounds")[:, :vocab]


def _allow(logits_RV: Array, get: dict[str, Array], allowed_RW: Array) -> Array:
    rows, vocab = logits_RV.shape
    words = jnp.broadcast_to(allowed_RW[:, :, None], (*allowed_RW.shape, 32))
    shifts = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32), words.shape)
    bits_RV = (lax.shift_right_logical(words, shifts) & 1).reshape(rows, -1)[:, :vocab]
    is_free_RV = (bits_RV > 0) | ((get["flags"] & 1) == 0)[:, None]
    return jnp.maximum(jnp.where(is_free_RV, logits_RV, NEG), NEG)


def _argmax(x_RV: Array) -> Array:
    ids_V = jnp.arange(x_RV.shape[1], dtype=jnp.int32)
    is_best = x_RV >= jnp.max(x_RV, axis=1, keepdims=True)
    best = jnp.min(jnp.where(is_best, ids_V[None, :], x_RV.shape[1]), axis=1)
    return jnp.minimum(best, x_RV.shape[1] - 1)


def _sortable(x: Array) -> Array:
    """Order-preserving int32 of floats."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(keys_RV: Array, mass_RV: Array, need_R: Array) -> Array:
    """The largest key t such that the mass of keys >= t is at least `need`, per row."""
    low = jnp.full(need_R.shape, -(2**31), jnp.int32)
    high = jnp.full(need_R.shape, 2**31 - 1, jnp.int32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        mass = jnp.sum(jnp.where(keys_RV >= middle[:, None], mass_RV, 0.0), axis=1)
        is_enough = mass >= need_R
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle - 1)

    found: Array = lax.fori_loop(0, 33, halve, (low, high))[0]
    return found


def _draw(logits_RV: Array, get: dict[str, Array]) -> Array:
    temperature = jnp.maximum(get["temperature"], 1e-5)[:, None]
    scaled_RV = logits_RV / temperature
    weight_RV = jnp.exp(scaled_RV - jnp.max(scaled_RV, axis=1, keepdims=True))
    is_kept = weight_RV >= get["min_p"][:, None]
    keys_RV = _sortable(scaled_RV)
    ones_RV = is_kept.astype(jnp.float32)
    vocab = float(logits_RV.shape[1])
    wanted = jnp.where(get["top_k"] > 0, get["top_k"].astype(jnp.float32), vocab)
    wanted = jnp.minimum(wanted, jnp.sum(ones_RV, axis=1))
    is_kept &= keys_RV >= _threshold(keys_RV, ones_RV, wanted)[:, None]
    mass_RV = jnp.where(is_kept, weight_RV, 0.0)
    need_R = jnp.minimum(get["top_p"], 1.0) * jnp.sum(mass_RV, axis=1)
    by_mass = keys_RV >= _threshold(keys_RV, mass_RV, need_R)[:, None]
    is_kept &= by_mass | (get["top_p"] >= 1.0)[:, None]
    return _first_past(jnp.where(is_kept, weight_RV, 0.0), get["uniform"])


def _first_past(mass_RV: Array, share_R: Array) -> Array:
    """The first id whose prefix holds more than `share` of the mass, per row; never one of mass 0.

    A sum over a prefix is the same tree with more terms set to zero, so it grows with the prefix in
    floating point too, and the bisection is exact.
    """
    rows, vocab = mass_RV.shape
    ids_V = jnp.arange(vocab, dtype=jnp.int32)
    goal_R = share_R * jnp.sum(mass_RV, axis=1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) >> 1
        prefix = jnp.sum(jnp.where(ids_V[None, :] <= middle[:, None], mass_RV, 0.0), axis=1)
        is_past = prefix > goal_R
        return jnp.where(is_past, low, middle + 1), jnp.where(is_past, middle, high)

    last_R = jnp.max(jnp.where(mass_RV > 0, ids_V[None, :], 0), axis=1)
    start = (jnp.zeros((rows,), jnp.int32), last_R)
    found: Array = lax.fori_loop(0, max(vocab - 1, 1).bit_length(), halve, start)[1]
    return found


def _pack(raw_RV: Array, token_R: Array, top_count: int) -> Array:
    rows = raw_RV.shape[0]
    top = jnp.max(raw_RV, axis=1, keepdims=True)
    logsum_R1 = top + jnp.log(jnp.sum(jnp.exp(raw_RV - top), axis=1, keepdims=True))
    row_R = jnp.arange(rows, dtype=jnp.int32)
    chosen_R = raw_RV.at[row_R, token_R].get(mode="promise_in_bounds")
    rank_R = 1 + jnp.sum((raw_RV > chosen_R[:, None]).astype(jnp.int32), axis=1)
    left_RV, ids, values = raw_RV, [], []
    for _ in range(top_count):
        best_R = _argmax(left_RV)
        ids.append(best_R)
        values.append(left_RV.at[row_R, best_R].get(mode="promise_in_bounds"))
        left_RV = left_RV.at[row_R, best_R].set(NEG, mode="promise_in_bounds")
    head = jnp.stack([token_R, rank_R, _bits(chosen_R - logsum_R1[:, 0])], axis=1)
    if not top_count:
        return head
    logprobs_RK = jnp.stack(values, axis=1) - logsum_R1
    return jnp.concatenate([head, jnp.stack(ids, axis=1), _bits(logprobs_RK)], axis=1)


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
