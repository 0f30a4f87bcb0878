"""RMS norm and embedding kernels equal their references."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.native import library
from ranvier.nn.kernels.embed import cpu as embed_cpu
from ranvier.nn.kernels.linear.pack import DTYPES, pack_layer
from ranvier.nn.kernels.norm import cpu, reference
from tests.numerics.isa import ISAS, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 16), (3, 50), (20, 576)], ids=str)
@pytest.mark.parametrize("has_residual", [False, True])
def test_norm_equals_the_reference(isa, shape, has_residual):
    library.set_isa(isa)
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    w = rng.standard_normal((2, shape[1])).astype(np.float32)
    arguments = (jnp.asarray(x), jnp.asarray(w), jnp.array([1]), jnp.array([shape[0]]))
    added = jnp.asarray(residual) if has_residual else None
    ours, theirs = (
        jax.jit(lambda *a, k=k: k.rms_norm(*a, eps=1e-6, residual=added))(*arguments)
        for k in (cpu, reference)
    )
    library.set_isa(None)
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("vocab", "hidden"), [(100, 48), (64, 64)])
def test_embedding_rows_come_out_of_the_packed_head(dtype, vocab, hidden):
    w = np.random.default_rng(0).standard_normal((vocab, hidden)).astype(np.float32)
    packed = pack_layer([w], is_gated=False, dtype=dtype, kernels="cpu")[None]
    ids = jnp.array([0, 15, 16, vocab - 1])
    rows = embed_cpu.embed(jnp.asarray(packed), ids, hidden=hidden, scale=2.0)
    want = 2 * w.astype(DTYPES[dtype]).astype(np.float32)[np.asarray(ids)]
    assert np.array_equal(np.asarray(rows), want)


def test_a_loop_that_embeds_does_not_convert_the_matrix():
    def chain(ids, weight):
        def body(ids, _):
            rows = embed_cpu.embed(weight, ids, hidden=48, scale=1.0)
            return (ids + jnp.sum(rows, axis=1).astype(jnp.int32)) % 1000, rows

        return jax.lax.scan(body, ids, None, length=3)

    weight = jax.ShapeDtypeStruct((1, 64, 24, 16, 2), jnp.bfloat16)
    text = jax.jit(chain).lower(jax.ShapeDtypeStruct((2,), jnp.int32), weight).compile().as_text()
    assert "while(" in text and "64,24,16,2" in text
    assert "f32[64,24,16,2]" not in text and "f32[1,64,24,16,2]" not in text
