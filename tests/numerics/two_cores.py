"""Logits of a model over two cores against the golden ones; run with two CPU devices."""

from __future__ import annotations

import sys
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402

from ranvier.build.neuron.shard import AXIS, across_cores, core_spec, partition  # noqa: E402
from ranvier.build.pack import pack_weights  # noqa: E402
from ranvier.core.program import ProgramShape  # noqa: E402
from ranvier.models.table import resolve  # noqa: E402
from ranvier.nn.decoder import Decoder, Shards  # noqa: E402
from ranvier.nn.kernels.attention import AttentionSpec  # noqa: E402
from ranvier.nn.kernels.table import select  # noqa: E402
from ranvier.weights.checkpoint import open_checkpoint  # noqa: E402

CORES = 2


def by_core(array, sizes):
    """Reorder the last axis from [a | b | ...] to [a0 | b0 | ... | a1 | b1 | ...]."""
    parts = np.split(array, np.cumsum(sizes)[:-1], axis=-1)
    cut = [np.split(part, CORES, axis=-1) for part in parts]
    return np.concatenate([p[core] for core in range(CORES) for p in cut], axis=-1)


def main(folder):
    golden = np.load(f"{folder}/golden.npz")
    checkpoint = open_checkpoint(Path(folder))
    spec, kernels = resolve(checkpoint.config), select("reference")
    weights = dict(pack_weights(checkpoint, spec, "float32", "reference"))
    kv = spec.kv_heads * spec.head_size
    for name in ("qkv", "qkv_bias"):
        if name in weights:
            weights[name] = by_core(weights[name], [spec.heads * spec.head_size, kv, kv])
    weights["gate_up"] = by_core(weights["gate_up"], [spec.intermediate] * 2)
    weights["rank"] = np.arange(CORES, dtype=np.int32)
    own, ids = core_spec(spec, CORES), golden["ids"]
    layout = ProgramShape("prefill", 96, 1, 96).layout(32, 96)
    decoder = Decoder(own, kernels, layout, 0, Shards(AXIS, spec.vocab_size))
    heads = AttentionSpec(spec.heads, spec.kv_heads, spec.head_size, 1.0, 1e-6)
    shapes = kernels.cache_shapes(spec.layers, heads, 4, 32, jnp.float32)
    state = {"k": np.full(shapes.k, np.nan, np.float32), "v": np.full(shapes.v, np.nan, np.float32),
             "sampled": np.zeros(1, np.int32)}  # fmt: skip
    meta, at = np.zeros(layout.size, np.int32), layout.slices
    meta[at["token_ids"]][: len(ids)] = ids
    meta[at["positions"]][: len(ids)] = np.arange(len(ids))
    meta[at["context_lens"]] = len(ids)
    meta[at["block_tables"]] = [1, 2, 3]
    meta[at["token_source"]] = -1
    meta[:3] = len(ids), 1, 0
    arguments = (weights, state, {"meta": meta})
    mesh = Mesh(np.asarray(jax.devices()), (AXIS,))
    placed = tuple(
        {n: jax.device_put(x, NamedSharding(mesh, partition(n, x.ndim))) for n, x in group.items()}
        for group in arguments
    )
    step, _ = across_cores(lambda w, s, i: decoder.logits_of_all(w, s, i["meta"]), arguments, CORES)
    _, logits = jax.jit(step)(*placed)
    print(float(np.abs(np.asarray(logits)[: len(ids)] - golden["logits"]).max()))


main(sys.argv[1])
