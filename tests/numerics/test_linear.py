"""The linear kernel equals the mathematics on every ISA; a row never depends on its neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ranvier.native import library
from ranvier.nn.kernels.linear.cpu import linear
from ranvier.nn.kernels.linear.pack import pack_layer

pytestmark = pytest.mark.skipif(not library.register(), reason="the kernels are not built")

BEST = library.ISAS.index(library.isa())
LAYERS = 2


@pytest.fixture(params=library.ISAS[: BEST + 1])
def isa(request):
    assert library.set_isa(request.param) == request.param
    yield request.param
    library.set_isa(None)


def rounded(x, dtype):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64) if dtype == "bfloat16" else x


def packed(w, dtype, is_gated=False):
    parts = [[*np.split(one, 2)] if is_gated else [one] for one in w]
    layers = [pack_layer(p, is_gated=is_gated, dtype=dtype, kernels="cpu") for p in parts]
    return jnp.asarray(np.stack(layers))


def run(x, w, dtype, count=None, **options):
    count = len(x) if count is None else count
    gated = options.get("gated")
    weight = packed(w, dtype, gated is not None)
    f = jax.jit(
        lambda x, weight, count: linear(
            x, weight, jnp.array([1]), count, outputs=w.shape[1], **options
        )
    )
    out = np.asarray(f(jnp.asarray(x), weight, jnp.array([count])))
    assert out.shape[1] == w.shape[1] // (2 if gated else 1)
    return out.astype(np.float64)


def make(rows, inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    w = (rng.standard_normal((LAYERS, outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)
    return x, w, rng


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 16, 17, 33, 70])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (50, 33), (576, 64)])
def test_product_equals_float64(isa, dtype, rows, inputs, outputs):
    x, w, _ = make(rows, inputs, outputs)
    want = rounded(x, dtype) @ rounded(w[1], dtype).T
    assert np.abs(run(x, w, dtype) - want).max() < 2e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norm_bias_and_residual_are_applied(isa, dtype):
    x, w, rng = make(9, 80, 48)
    norm = rng.standard_normal((LAYERS, 80)).astype(np.float32)
    bias = rng.standard_normal((LAYERS, 48)).astype(np.float32)
    residual = rng.standard_normal((9, 48)).astype(np.float32)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * norm[1]
    want = rounded(normed, dtype) @ rounded(w[1], dtype).T + bias[1] + residual
    options = {"norm": (jnp.asarray(norm), 1e-5), "bias": jnp.asarray(bias)}
    got = run(x, w, dtype, residual=jnp.asarray(residual), **options)
    assert np.abs(got - want).max() < (2e-2 if dtype == "bfloat16" else 2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("gate", ["silu", "gelu_tanh"])
def test_gates_equal_float64(isa, dtype, gate):
    x, w, _ = make(7, 64, 96)
    both = rounded(3 * x, dtype) @ rounded(w[1], dtype).T
    g, up = both[:, :48], both[:, 48:]
    inner = np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
    act = g / (1 + np.exp(-g)) if gate == "silu" else 0.5 * g * (1 + np.tanh(inner))
    assert np.abs(run(3 * x, w, dtype, gated=gate) - act * up).max() < 5e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_is_bit_equal_alone_and_anywhere_in_a_batch(isa, dtype):
    x, w, rng = make(1, 576, 96)
    norm = (jnp.asarray(rng.standard_normal((LAYERS, 576)).astype(np.float32)), 1e-5)
    alone = run(x, w, dtype, norm=norm)
    for rows, at in ((2, 1), (6, 5), (7, 6), (16, 3), (17, 16), (40, 33), (200, 130)):
        batch = rng.standard_normal((rows, 576)).astype(np.float32)
        batch[at] = x[0]
        assert np.array_equal(run(batch, w, dtype, norm=norm)[at], alone[0])


def test_threads_change_nothing():
    x, w, _ = make(40, 576, 640)
    try:
        library.set_threads(1)
        one = run(x, w, "bfloat16")
    finally:
        library.set_threads(2)
    assert np.array_equal(one, run(x, w, "bfloat16"))


def test_rows_past_the_count_cost_nothing_and_are_not_read():
    x, w, _ = make(8, 64, 64)
    x[3:] = np.nan
    out = run(x, w, "bfloat16", count=3)
    assert np.isfinite(out[:3]).all()


def test_bf16_in_and_out():
    x, w, _ = make(5, 64, 64)
    out = run(x.astype(ml_dtypes.bfloat16), w, "bfloat16", out_dtype=jnp.bfloat16)
    want = rounded(x, "bfloat16") @ rounded(w[1], "bfloat16").T
    assert np.abs(out - want).max() < 2e-2
