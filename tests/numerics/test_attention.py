"""The attention kernel equals float64 mathematics on every ISA, whatever the batch and chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ranvier.core.layout import MetaLayout
from ranvier.native import library
from ranvier.nn import rope
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.attention.cpu import attention, cache_shapes
from tests.numerics.isa import ISAS, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS

LAYERS, LAYER, BLOCK, BLOCKS, TOKENS, ROWS = 2, 1, 32, 20, 640, 4
COUNT = ROWS * BLOCKS + 1
INV_FREQ = (0.1, 0.01)


@pytest.fixture(params=ISAS)
def isa(request):
    assert library.set_isa(request.param) == request.param
    yield request.param
    library.set_isa(None)


class Device:
    """A poisoned cache and the kernel over it."""

    def __init__(self, spec, dtype, window=0, is_normed=False):
        self.spec, self.dtype, self.window = spec, dtype, window
        self.layout = MetaLayout(TOKENS, ROWS, BLOCKS)
        shapes = cache_shapes(LAYERS, spec, COUNT, BLOCK, dtype)
        self.k = jnp.full(shapes.k, jnp.nan, dtype)
        self.v = jnp.full(shapes.v, jnp.nan, dtype)
        rng = np.random.default_rng(3)
        norms = 1 + 0.1 * rng.standard_normal((2, LAYERS, spec.head_size)).astype(np.float32)
        self.norms = norms if is_normed else None
        self.call = jax.jit(self._call, donate_argnums=(1, 2))

    def _call(self, qkv, k, v, meta):
        half = self.spec.head_size // 2
        freq = jnp.broadcast_to(jnp.asarray(INV_FREQ)[:, None], (2, half)) / jnp.arange(1, half + 1)
        cos_sin = rope.tables(meta[self.layout.slices["positions"]], freq, jnp.ones(2))
        q_norm, k_norm = (None, None) if self.norms is None else map(jnp.asarray, self.norms)
        return attention(
            qkv, k, v, jnp.array([LAYER]), meta, self.layout, self.spec, cos_sin=cos_sin,
            windows=jnp.array([7, self.window]), ropes=jnp.array([0, 1]),
            q_norm=q_norm, k_norm=k_norm,
        )  # fmt: skip

    def run(self, chunks):
        """chunks: (sequence, start, qkv [n, O]); returns out [n, H*E] of each."""
        meta, at = np.zeros(self.layout.size, np.int32), self.layout.slices
        qkv = np.full((TOKENS, chunks[0][2].shape[1]), np.nan, np.float32)
        done, tables = 0, meta[at["block_tables"]].reshape(ROWS, BLOCKS)
        for row, (seq, start, x) in enumerate(chunks):
            stop = done + len(x)
            qkv[done:stop] = x
            meta[at["positions"]][done:stop] = np.arange(start, start + len(x))
            meta[at["token_seq"]][done:stop] = row
            tables[row] = 1 + seq + ROWS * np.arange(BLOCKS)
            done = stop
            meta[at["query_starts"]][row + 1 :] = done
        meta[:3] = done, len(chunks), 0
        out, self.k, self.v = self.call(jnp.asarray(qkv), self.k, self.v, jnp.asarray(meta))
        ends = np.cumsum([len(x) for _, _, x in chunks])
        return np.split(np.asarray(out), ends)[: len(chunks)]


def rounded(x, dtype):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64) if dtype == jnp.bfloat16 else x


def expected(x, device):
    """Attention of one whole sequence x [n, O] in float64, its inputs rounded as the kernel's."""
    spec, size = device.spec, device.spec.head_size
    parts = x.astype(np.float64).reshape(len(x), -1, size)
    q, k, v = np.split(parts, [spec.heads, spec.heads + spec.kv_heads], axis=1)
    if device.norms is not None:
        w = device.norms[:, LAYER].astype(np.float64)
        q, k = (y / np.sqrt((y**2).mean(-1, keepdims=True) + spec.eps) * n
                for y, n in zip((q, k), w, strict=True))  # fmt: skip
    angles = np.arange(len(x))[:, None] * (INV_FREQ[1] / np.arange(1, size // 2 + 1))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turn(y):
        a, b = np.split(y, 2, -1)
        return rounded(np.concatenate([a * cos - b * sin, b * cos + a * sin], -1), device.dtype)

    q, k, v = turn(q), turn(k), rounded(v, device.dtype)
    group = spec.heads // spec.kv_heads
    scores = np.einsum("qhe,khe->hqk", q, np.repeat(k, group, 1)) * spec.scale
    behind = np.arange(len(x))[:, None] - np.arange(len(x))[None]
    is_seen = (behind >= 0) & ((device.window == 0) | (behind < device.window))
    weights = np.exp(np.where(is_seen, scores, -np.inf) - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khe->qhe", weights, np.repeat(v, group, 1)).reshape(len(x), -1)


def inputs(spec, length, seed):
    width = (spec.heads + 2 * spec.kv_heads) * spec.head_size
    return np.random.default_rng(seed).standard_normal((length, width)).astype(np.float32)


SHAPES = [(4, 2, 32), (9, 3, 64), (3, 3, 16), (8, 1, 48), (2, 1, 256)]


@pytest.mark.parametrize("window", [0, 5, 40])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_ragged_batch_equals_float64(isa, heads, dtype, window):
    spec = AttentionSpec(*heads, 0.25, 1e-6)
    device = Device(spec, dtype, window)
    xs = [inputs(spec, n, n) for n in (1, 37, 70)]
    outs = device.run([(i, 0, x) for i, x in enumerate(xs)])
    bound = 1e-5 if dtype == jnp.float32 else 0.03  # weights and result are rounded to bfloat16
    for x, out in zip(xs, outs, strict=True):
        assert np.abs(out.astype(np.float64) - expected(x, device)).max() < bound


def test_norms_of_q_and_k(isa):
    spec = AttentionSpec(4, 2, 32, 0.25, 1e-6)
    device = Device(spec, jnp.float32, is_normed=True)
    x = inputs(spec, 50, 0)
    assert np.abs(device.run([(0, 0, x)])[0] - expected(x, device)).max() < 1e-5


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_chunks_and_mates_change_no_bit(isa, dtype, window):
    spec = AttentionSpec(6, 2, 32, 0.25, 1e-6)
    x = inputs(spec, 600, 1)
    (whole,) = Device(spec, dtype, window).run([(0, 0, x)])
    mates = [inputs(spec, n, 9) for n in (3, 20)]
    device, start = Device(spec, dtype, window), 0
    for size in (1, 16, 100, 395, 1, 1, 86):
        chunk = (0, start, x[start : start + size])
        outs = device.run([(2, 0, mates[0]), chunk, (3, 0, mates[1])])
        assert np.array_equal(outs[1], whole[start : start + size]), (start, size)
        start += size
    assert start == 600


def test_threads_change_no_bit(isa):
    spec = AttentionSpec(6, 2, 32, 0.25, 1e-6)
    x = inputs(spec, 600, 1)
    outs = []
    for threads in (1, 2):
        library.set_threads(threads)
        device = Device(spec, jnp.bfloat16)
        outs.append([device.run([(0, 0, x[:-1])])[0], device.run([(0, 599, x[-1:])])[0]])
    for one, two in zip(*outs, strict=True):
        assert np.array_equal(one, two)


def test_cache_is_updated_in_place():
    spec = AttentionSpec(4, 2, 32, 0.25, 1e-6)
    device = Device(spec, jnp.bfloat16)
    places = [a.unsafe_buffer_pointer() for a in (device.k, device.v)]
    device.run([(0, 0, inputs(spec, 3, 0))])
    assert [a.unsafe_buffer_pointer() for a in (device.k, device.v)] == places


def test_blocks_out_of_range_are_an_error():
    spec = AttentionSpec(4, 2, 32, 0.25, 1e-6)
    device = Device(spec, jnp.float32)
    with pytest.raises(Exception, match="metadata"):
        device.run([(COUNT, 0, inputs(spec, 3, 0))])
