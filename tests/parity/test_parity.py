"""Logits equal transformers' in f32 on tiny random models of every family, whole and in chunks.

Goldens: tests/parity/make_goldens.py.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.build.pack import pack_weights
from ranvier.core.layout import MetaLayout
from ranvier.models.table import resolve
from ranvier.native import library
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.table import TABLE, select
from ranvier.weights.checkpoint import open_checkpoint

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
BLOCK = 32
BLOCKS = 4
BOUND = 1e-4


class Model:
    """One family's weights, cache and program of 128 tokens, two sequences."""

    def __init__(self, family: str, kernels_name: str, dtype: str = "float32") -> None:
        if kernels_name == "cpu" and not library.register():
            pytest.skip("the kernels are not built")
        self.checkpoint = open_checkpoint(GOLDENS / family)
        self.spec = resolve(self.checkpoint.config)
        kernels, kind = select(kernels_name), jnp.dtype(dtype)
        packed = pack_weights(self.checkpoint, self.spec, dtype, kernels_name)
        self.weights = {name: jnp.asarray(array) for name, array in packed}
        self.layout = MetaLayout(tokens=128, rows=2, blocks=BLOCKS)
        spec = self.spec
        heads = AttentionSpec(spec.heads, spec.kv_heads, spec.head_size, 1.0, 1e-6)
        shapes = kernels.cache_shapes(spec.layers, heads, 2 * BLOCKS + 1, BLOCK, kind)
        # A poisoned cache: what was never written must never be read.
        self.state = {
            "k": jnp.full(shapes.k, jnp.nan, kind),
            "v": jnp.full(shapes.v, jnp.nan, kind),
            "sampled": jnp.zeros((2,), jnp.int32),
        }
        decoder = Decoder(spec, kernels, self.layout, 0)
        self.program = jax.jit(decoder.logits_of_all, donate_argnums=1)

    def run(self, chunks: list[tuple[int, np.ndarray]]) -> np.ndarray:
        """Run (start, ids) of sequences 0, 1; return the live tokens' logits."""
        meta = np.zeros(self.layout.size, np.int32)
        at = self.layout.slices
        done = 0
        for seq, (start, ids) in enumerate(chunks):
            stop = done + len(ids)
            meta[at["token_ids"]][done:stop] = ids
            meta[at["positions"]][done:stop] = np.arange(start, start + len(ids))
            meta[at["token_seq"]][done:stop] = seq
            meta[at["context_lens"]][seq] = start + len(ids)
            tables = meta[at["block_tables"]].reshape(2, BLOCKS)
            tables[seq] = 1 + seq + 2 * np.arange(BLOCKS)
            done = stop
            meta[at["query_starts"]][seq + 1 :] = done
        meta[:3] = (done, len(chunks), 0)
        meta[at["token_source"]] = -1
        self.state, logits = self.program(self.weights, self.state, jnp.asarray(meta))
        return np.asarray(logits)[:done]


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in TABLE])
def model(request):
    return Model(*request.param), np.load(GOLDENS / request.param[0] / "golden.npz")


def test_whole_prompt_gives_the_reference_logits(model):
    ours, golden = model
    logits = ours.run([(0, golden["ids"])])
    assert np.abs(logits - golden["logits"]).max() <= BOUND


def test_chunks_beside_another_sequence_give_the_reference_logits(model):
    ours, golden = model
    ids = golden["ids"]
    cuts = [0, 1, 17, 33, 50, 69, 70]
    got = []
    for i, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        other = np.full(3, 7 + i)
        got.append(ours.run([(start, ids[start:stop]), (3 * i, other)])[: stop - start])
    assert np.abs(np.concatenate(got) - golden["logits"]).max() <= BOUND


ROUNDING = 2.0**-9
"""Largest relative error of one rounding to bfloat16."""
ROUNDINGS_PER_LAYER = 6
"""Input of q, k, v; q; k and v in the cache; attention's output; input of the MLP; its middle."""
SIGMAS = 5
"""Beyond which none of the 11,200 logits of a golden may lie, were the errors normal."""


@pytest.mark.parametrize("kernels_name", TABLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_within_the_error_of_its_roundings(family, kernels_name):
    """The goldens' weights are bfloat16 numbers, so only activations and the cache are rounded.

    Errors of independent roundings add as their squares: about sqrt(roundings) of one, relative to
    the size of the logits; half as much again is left for what a layer amplifies.
    """
    golden = np.load(GOLDENS / family / "golden.npz")
    ours = Model(family, kernels_name, "bfloat16")
    error = ours.run([(0, golden["ids"])]).astype(np.float64) - golden["logits"]
    size = np.sqrt(np.mean(np.square(golden["logits"].astype(np.float64))))
    roundings = ROUNDINGS_PER_LAYER * ours.spec.layers + 1
    bound = 1.5 * np.sqrt(roundings) * ROUNDING * size
    assert 0 < np.sqrt(np.mean(np.square(error))) <= bound
    assert np.abs(error).max() <= SIGMAS * bound
