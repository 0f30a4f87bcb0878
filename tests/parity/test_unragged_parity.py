"""Prefill and decode programs give the reference logits in both KV layouts, on a poisoned cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parity.test_parity import BOUND, FAMILIES, GOLDENS

from ranvier.build.pack import pack_weights
from ranvier.core.program import ProgramShape
from ranvier.models.table import resolve
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.table import select
from ranvier.weights.checkpoint import open_checkpoint

LENGTH = 96
LAYOUTS = {"block": (32, 7), "contiguous": (96, 4)}
PREFILL = ProgramShape("prefill", 32, 1, 64)
DECODE = ProgramShape("decode", 3, 3, 96)


class Device:
    """One family's weights, its poisoned cache, and one program of each kind."""

    def __init__(self, family, kv_layout):
        checkpoint = open_checkpoint(GOLDENS / family)
        spec, kernels = resolve(checkpoint.config), select("reference")
        packed = pack_weights(checkpoint, spec, "float32", "reference")
        self.weights = {name: jnp.asarray(array) for name, array in packed}
        self.block_tokens, count = LAYOUTS[kv_layout]
        heads = AttentionSpec(spec.heads, spec.kv_heads, spec.head_size, 1.0, 1e-6)
        shapes = kernels.cache_shapes(spec.layers, heads, count, self.block_tokens, jnp.float32)
        self.state = {
            "k": jnp.full(shapes.k, jnp.nan), "v": jnp.full(shapes.v, jnp.nan),
            "sampled": jnp.zeros((3,), jnp.int32),
        }  # fmt: skip
        self.programs = {}
        for shape in (PREFILL, DECODE):
            layout = shape.layout(self.block_tokens, LENGTH)
            decoder = Decoder(spec, kernels, layout, 0)
            self.programs[shape] = layout, jax.jit(decoder.logits_of_all, donate_argnums=1)

    def run(self, shape, chunks):
        """chunks: (sequence, start, ids); the live tokens' logits."""
        layout, program = self.programs[shape]
        meta, at, done = np.zeros(layout.size, np.int32), layout.slices, 0
        tables = meta[at["block_tables"]].reshape(layout.rows, layout.blocks)
        per_sequence = LENGTH // self.block_tokens
        for row, (seq, start, ids) in enumerate(chunks):
            stop = done + len(ids)
            meta[at["token_ids"]][done:stop] = ids
            meta[at["positions"]][done:stop] = np.arange(start, start + len(ids))
            meta[at["token_seq"]][done:stop] = row
            meta[at["context_lens"]][row] = start + len(ids)
            owned = 1 + per_sequence * seq + np.arange(-(-(start + len(ids)) // self.block_tokens))
            tables[row, : len(owned)] = owned
            done = stop
        meta[at["token_source"]] = -1
        meta[:3] = done, len(chunks), 0
        self.state, logits = program(self.weights, self.state, jnp.asarray(meta))
        return np.asarray(logits)[:done]


@pytest.mark.parametrize("kv_layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_then_decode_beside_another_row_give_the_reference_logits(family, kv_layout):
    device, golden = Device(family, kv_layout), np.load(GOLDENS / family / "golden.npz")
    ids, got = golden["ids"], []
    for start, stop in ((0, 20), (20, 21), (21, 53), (53, 60)):
        device.run(PREFILL, [(1, start, ids[start:stop][::-1])])
        got.append(device.run(PREFILL, [(0, start, ids[start:stop])]))
    for position in range(60, 70):
        rows = [(1, position, [7]), (0, position, ids[position : position + 1])]
        got.append(device.run(DECODE, rows)[1:])
    assert np.abs(np.concatenate(got) - golden["logits"]).max() <= BOUND
