"""A KV cache in fp8 or int8: codes, error, and the bits of a request, on every instruction set."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ranvier.core.layout import MetaLayout
from ranvier.native import library
from ranvier.nn import rope
from ranvier.nn.kernels.attention import AttentionSpec, cpu, reference
from ranvier.nn.kernels.attention.codes import decode, encode
from tests.numerics.isa import ISAS, NEEDS_KERNELS

LAYERS, LAYER, BLOCK, BLOCKS, TOKENS, ROWS = 2, 1, 32, 20, 640, 4
COUNT = ROWS * BLOCKS + 1
FP8_MAX = 448.0
KINDS = ("fp8", "int8")
DTYPES = (jnp.float32, jnp.bfloat16)
SPEC = AttentionSpec(6, 2, 32, 0.25, 1e-6)
ALL_BFLOAT16 = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
FINITE = ALL_BFLOAT16[np.isfinite(ALL_BFLOAT16)]


@pytest.fixture(params=ISAS)
def isa(request):
    assert library.set_isa(request.param) == request.param
    yield request.param
    library.set_isa(None)


def as_fp8(x):
    """What ml_dtypes, and not XLA or our kernels, makes of values within the range."""
    return np.clip(x, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)


class Device:
    """A poisoned narrow cache and one target's attention over it."""

    def __init__(self, kernels, kind, dtype, spec=SPEC, window=0):
        spec = dataclasses.replace(spec, out_dtype=dtype)
        self.kernels, self.dtype, self.spec, self.window = kernels, dtype, spec, window
        self.layout = MetaLayout(TOKENS, ROWS, BLOCKS)
        shapes = kernels.cache_shapes(LAYERS, spec, COUNT, BLOCK, dtype, kind)
        poison = np.full(np.prod(shapes.k) * shapes.dtype.itemsize, 0xFF, np.uint8)
        poison = poison.view(shapes.dtype)
        self.k, self.v = (jnp.array(poison.reshape(s)) for s in (shapes.k, shapes.v))
        self.call = jax.jit(self._call, donate_argnums=(1, 2))

    def _call(self, qkv, k, v, meta):
        half = self.spec.head_size // 2
        freq = jnp.full((2, half), 0.1) / jnp.arange(1, half + 1)
        cos_sin = rope.tables(meta[self.layout.slices["positions"]], freq, jnp.ones(2))
        return self.kernels.attention(
            qkv, k, v, jnp.array([LAYER]), meta, self.layout, self.spec, cos_sin=cos_sin,
            windows=jnp.array([7, self.window]), ropes=jnp.array([0, 1]),
        )  # fmt: skip

    def run(self, chunks):
        """chunks: (sequence, start, qkv [n, O]); returns out [n, H*E] of each, f32."""
        meta, at = np.zeros(self.layout.size, np.int32), self.layout.slices
        qkv = np.full((TOKENS, chunks[0][2].shape[1]), np.nan, np.float32)
        done, tables = 0, meta[at["block_tables"]].reshape(ROWS, BLOCKS)
        for row, (seq, start, x) in enumerate(chunks):
            stop = done + len(x)
            qkv[done:stop] = x
            meta[at["positions"]][done:stop] = np.arange(start, start + len(x))
            meta[at["token_seq"]][done:stop] = row
            tables[row] = 1 + seq + ROWS * np.arange(BLOCKS)
            meta[at["context_lens"]][row] = start + len(x)
            done = stop
            meta[at["query_starts"]][row + 1 :] = done
        meta[:3] = done, len(chunks), 0
        out, self.k, self.v = self.call(jnp.asarray(qkv), self.k, self.v, jnp.asarray(meta))
        assert out.dtype == self.dtype
        ends = np.cumsum([len(x) for _, _, x in chunks])
        return np.split(np.asarray(out).astype(np.float32), ends)[: len(chunks)]


def inputs(spec, length, seed):
    width = (spec.heads + 2 * spec.kv_heads) * spec.head_size
    return np.random.default_rng(seed).standard_normal((length, width)).astype(np.float32)


def written_v(device, tokens):
    """The cache's v codes of the first block of sequence 0 and layer LAYER: [tokens, K, E]."""
    spec, v = device.spec, np.asarray(device.v).view(np.uint8)[LAYER, 1]
    codes = v.reshape(spec.kv_heads, -1)[:, : BLOCK * spec.head_size]
    if device.dtype == jnp.bfloat16:
        pairs = codes.reshape(spec.kv_heads, BLOCK // 2, spec.head_size, 2)
        codes = pairs.transpose(0, 1, 3, 2)
    rows = codes.reshape(spec.kv_heads, BLOCK, spec.head_size)
    return rows.transpose(1, 0, 2)[:tokens]


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
def test_written_fp8_is_that_of_ml_dtypes(isa, dtype):
    spec = AttentionSpec(8, 8, 256, 1.0, 1e-6)
    values = np.zeros((32, 8 * 256), np.float32)
    for start in range(0, len(FINITE), values.size):
        part = FINITE[start : start + values.size]
        values.flat[: len(part)] = part
        x = np.concatenate([np.zeros((32, 2 * 8 * 256), np.float32), values], axis=1)
        device = Device(cpu, "fp8", dtype, spec)
        device.run([(0, 0, x)])
        want = as_fp8(values.reshape(32, 8, 256)).view(np.uint8)
        assert np.array_equal(written_v(device, 32), want)


def test_the_references_fp8_is_that_of_ml_dtypes_and_never_nan():
    found = np.asarray(jax.jit(lambda x: encode(x, jnp.float8_e4m3fn))(ALL_BFLOAT16))
    assert np.array_equal(
        found.view(np.uint8)[np.isfinite(ALL_BFLOAT16)], as_fp8(FINITE).view(np.uint8)
    )
    assert np.isfinite(found.astype(np.float32)).all()


@NEEDS_KERNELS
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_and_nan_values_become_finite_codes(isa, kind):
    device = Device(cpu, kind, jnp.bfloat16)
    x = inputs(SPEC, 4, 0)
    x[1, -3:] = np.nan, np.inf, -np.inf
    device.run([(0, 0, x)])
    tail = written_v(device, 4)[1, -1, -3:]
    if kind == "fp8":
        assert tail.tolist() == [0x00, 0x7E, 0xFE]
    else:
        assert tail.view(np.int8).tolist() == [0, 127, -127]


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
def test_int8_is_within_half_a_step_of_its_own_scale(isa, dtype):
    spec = AttentionSpec(4, 2, 32, 1.0, 1e-6)
    x = inputs(spec, 32, 4) * np.logspace(-6, 6, 32, dtype=np.float32)[:, None]
    x[7] = 0
    device = Device(cpu, "int8", dtype, spec)
    device.run([(0, 0, x)])
    values = x.reshape(32, -1, 32)[:, -2:].astype(np.float64)
    block = np.asarray(device.v)[LAYER, 1].reshape(2, -1)[:, BLOCK * 32 :]
    scales = np.ascontiguousarray(block).view(np.float32).T[..., None]
    codes = written_v(device, 32).view(np.int8)
    largest = np.abs(values).max(-1, keepdims=True)
    assert np.allclose(scales, largest / 127, rtol=1e-6, atol=0)
    assert (np.abs(codes * scales.astype(np.float64) - values) <= scales * 0.50001).all()
    assert not codes[7].any() and not scales[7].any()


SHAPES = [(4, 2, 32), (9, 3, 64), (3, 3, 16), (8, 1, 48), (2, 1, 256)]


@NEEDS_KERNELS
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_kernel_equals_the_reference_over_the_rounded_cache(isa, heads, kind, dtype, window):
    spec = AttentionSpec(*heads, 0.25, 1e-6)
    chunks = [(i, 0, inputs(spec, n, n)) for i, n in enumerate((1, 37, 70))]
    fast = Device(cpu, kind, dtype, spec, window).run(chunks)
    plain = Device(reference, kind, dtype, spec, window).run(chunks)
    # Where k lies between two codes, the last bit of rope decides: one code of 37 keys differs.
    bound = 0.02 if dtype == jnp.float32 else 0.06
    for one, other in zip(fast, plain, strict=True):
        assert np.abs(one - other).max() < bound
        assert np.abs(one - other).mean() < bound / 20


@NEEDS_KERNELS
@pytest.mark.parametrize(("kind", "bound"), [("fp8", 0.15), ("int8", 0.05)])
def test_error_against_the_whole_cache(isa, kind, bound):
    chunks = [(0, 0, inputs(SPEC, 400, 5))]
    [narrow] = Device(cpu, kind, jnp.bfloat16).run(chunks)
    [whole] = Device(cpu, "auto", jnp.float32).run(chunks)
    error = np.abs(narrow - whole)
    assert 0 < error.max() < 4 * bound
    assert np.sqrt((error**2).mean() / (whole**2).mean()) < bound


@NEEDS_KERNELS
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_mates_change_no_bit(isa, kind, window):
    x = inputs(SPEC, 600, 1)
    (whole,) = Device(cpu, kind, jnp.bfloat16, window=window).run([(0, 0, x)])
    assert np.isfinite(whole).all()
    mates = [inputs(SPEC, n, 9) for n in (3, 20)]
    device, start = Device(cpu, kind, jnp.bfloat16, window=window), 0
    for size in (1, 16, 100, 395, 1, 1, 86):
        chunk = (0, start, x[start : start + size])
        outs = device.run([(2, 0, mates[0]), chunk, (3, 0, mates[1])])
        assert np.array_equal(outs[1], whole[start : start + size]), (start, size)
        start += size
    assert start == 600


@NEEDS_KERNELS
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_reads_the_same_values(kind):
    chunks = [(0, 0, inputs(SPEC, 70, 2))]
    outs = []
    for name in ISAS:
        assert library.set_isa(name) == name
        outs.append(Device(cpu, kind, jnp.bfloat16).run(chunks)[0])
    library.set_isa(None)
    for out in outs[1:]:
        assert np.abs(out - outs[0]).max() < 0.05


@NEEDS_KERNELS
@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_updated_in_place_at_half_the_bytes(kind):
    device = Device(cpu, kind, jnp.bfloat16)
    wide = Device(cpu, "auto", jnp.bfloat16)
    scales = 4 / SPEC.head_size if kind == "int8" else 0
    assert device.k.nbytes == wide.k.nbytes * (1 + scales) / 2
    places = [a.unsafe_buffer_pointer() for a in (device.k, device.v)]
    device.run([(0, 0, inputs(SPEC, 3, 0))])
    assert [a.unsafe_buffer_pointer() for a in (device.k, device.v)] == places


def test_codes_round_trip():
    x = np.random.default_rng(0).standard_normal((5, 2, 16)).astype(np.float32)
    back = np.asarray(decode(encode(x, jnp.int8), jnp.float32))
    assert (np.abs(back - x) <= np.abs(x).max(-1, keepdims=True) / 127 * 0.50001).all()
    assert np.array_equal(decode(encode(back, jnp.int8), jnp.float32), back)


@NEEDS_KERNELS
def test_a_cache_of_another_dtype_is_an_error():
    device = Device(cpu, "fp8", jnp.bfloat16)
    device.k, device.v = (x.astype(jnp.float16) for x in (device.k, device.v))
    with pytest.raises(Exception, match="dtype or shape of the cache"):
        device.run([(0, 0, inputs(SPEC, 3, 0))])
