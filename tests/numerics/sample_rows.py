"""A child process with eight CPU devices: samples of a cut vocabulary against those of a whole one.

Prints a JSON object: how many outputs were compared, and the names of the cases that differ.
"""

from __future__ import annotations

import json

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

from ranvier.core.layout import SEEN_BIT, MetaLayout  # noqa: E402
from ranvier.native import library  # noqa: E402
from ranvier.nn.kernels.sample import cpu, reference  # noqa: E402
from ranvier.nn.sample_rows import RowSampler  # noqa: E402
from ranvier.nn.shards import AXES, Shards  # noqa: E402

VOCAB, TOP, EDITS = 997, 5, 6
MESHES = ((1, 2), (1, 3), (2, 2), (1, 8), (2, 4))
ROWS = (1, 5, 16)
PARAMETERS = (
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1.2, "top_k": 7},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "target_ids": 990},
    {"temperature": 0.7, "flags": 1},
)


def inputs(rows, live):
    """Rows of every kind of parameter in turn, each with edits and bits of its own."""
    rng, layout = np.random.default_rng(rows), MetaLayout(rows, rows, 1)
    meta, at = np.zeros(layout.size, np.int32), layout.slices
    meta[2] = live
    defaults = {"target_ids": -1, "repetition": 1.3, "frequency": 0.2, "presence": 0.4}
    for row in range(live):
        own = {**defaults, "top_p": 1.0, "uniform": rng.random(), "logprob_counts": TOP,
               "edit_counts": rng.integers(0, EDITS + 1)}  # fmt: skip
        for name, value in {**own, **PARAMETERS[(row + rows) % len(PARAMETERS)]}.items():
            field = meta[at[name]]
            is_whole = isinstance(value, (int, np.integer))
            (field if is_whole else field.view(np.float32))[row] = value
    edits = np.zeros((rows, EDITS, 3), np.int32)
    for row in edits:
        row[:, 0] = rng.choice(VOCAB, EDITS, replace=False)
        row[:, 1] = rng.integers(0, 4, EDITS) | (rng.integers(0, 2, EDITS) << SEEN_BIT)
        row[:, 2] = rng.standard_normal(EDITS).astype(np.float32).view(np.int32)
    allowed = rng.integers(-(2**31), 2**31, (rows, -(-VOCAB // 32))).astype(np.int32)
    logits = 3 * rng.standard_normal((rows, VOCAB)).astype(np.float32)
    return layout, logits, (meta, edits, allowed)


def over_ranks(kernel, mesh, layout, logits, rest):
    """The samples by ranks that each hold an equal part of the columns, the last one padded."""
    shards = Shards(VOCAB, tensor=mesh[1], pipeline=mesh[0])
    width = -(-VOCAB // shards.ranks)
    logits = np.pad(logits, ((0, 0), (0, shards.ranks * width - VOCAB)), constant_values=1e9)

    def draw(rank, logits_RW, meta, edits, allowed):
        sampler = RowSampler(kernel.sample, shards, rank)
        return sampler(logits_RW, meta, layout, edits, allowed, top_count=TOP)

    devices = np.asarray(jax.devices()[: shards.ranks]).reshape(mesh)
    own, same = PartitionSpec(AXES), PartitionSpec()
    mapped = jax.shard_map(
        draw, mesh=Mesh(devices, AXES), out_specs=same, check_vma=False,
        in_specs=(own, PartitionSpec(None, AXES), same, same, same),
    )  # fmt: skip
    return jax.jit(mapped)(jnp.arange(shards.ranks, dtype=jnp.int32), logits, *rest)


def main():
    library.register()
    wrong, compared = [], 0
    for name, kernel in (("cpu", cpu), ("reference", reference)):
        for rows in ROWS:
            live = max(1, rows - 2)
            layout, logits, rest = inputs(rows, live)
            meta, edits, allowed = rest
            draw = jax.jit(
                lambda *a, k=kernel, s=layout: k.sample(*a[:2], s, *a[2:], top_count=TOP)
            )
            whole = np.asarray(draw(logits, meta, edits, allowed))[:live]
            for mesh in MESHES:
                found = np.asarray(over_ranks(kernel, mesh, layout, logits, rest))
                assert found.shape[0] == rows
                compared += found[:live].size
                if not np.array_equal(found[:live], whole):
                    wrong.append(f"{name} {rows} {mesh}")
    print(json.dumps({"compared": compared, "wrong": wrong}))


if __name__ == "__main__":
    main()
