"""Features of encoders whose towers lie over two cores against one core's; two CPU devices."""

from __future__ import annotations

import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

from ranvier.build.pack import pack_weights  # noqa: E402
from ranvier.build.vision.shards import core_vision, split_axis  # noqa: E402
from ranvier.models.table import resolve  # noqa: E402
from ranvier.nn.kernels.table import select  # noqa: E402
from ranvier.nn.vision.tower import Work  # noqa: E402
from ranvier.runtime.pictures import arrange, padded, units_of  # noqa: E402
from ranvier.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity.vision_cases import GOLDENS, pictures_of  # noqa: E402

AXIS, CORES = "cores", 2


def by_core(array, parts):
    """Reorder the last axis from [a | b | ...] to [a0 | b0 | ... | a1 | b1 | ...]."""
    cut = [np.split(part, CORES, axis=-1) for part in np.split(array, parts, axis=-1)]
    return np.concatenate([p[core] for core in range(CORES) for p in cut], axis=-1)


def placement(name, array, vision):
    at = None if name == "vision.cross_kv" else split_axis(name, vision)
    return PartitionSpec(*(AXIS if i == at else None for i in range(array.ndim)))


def main(family, label):
    checkpoint = open_checkpoint(GOLDENS / family)
    spec, kernels = resolve(checkpoint.config), select("reference")
    packed = pack_weights(checkpoint, spec, "float32", "reference")
    weights = {name: array for name, array in packed if name.startswith("vision.")}
    ids = np.load(GOLDENS / family / "golden.npz")[f"{label}/ids"]
    image, vision = pictures_of(family, label, ids)[0], spec.vision
    units = next(u for u in vision.units if u >= units_of(image, vision.unit))
    inputs = padded(arrange(image, vision.preparation), vision.encoder.inputs(units))
    wanted = vision.encoder.encode(Work({n: jnp.asarray(w) for n, w in weights.items()}, kernels),
                                   inputs)  # fmt: skip
    own = core_vision(vision, CORES)
    for name in weights:
        if name.rpartition(".")[2] in ("qkv", "qkv_bias"):
            weights[name] = by_core(weights[name], 3)
    places = {name: placement(name, array, own) for name, array in weights.items()}
    assert any(AXIS in place for place in places.values())

    def encode(weights, inputs):
        work = Work(weights, kernels, lambda x: jax.lax.psum(x, AXIS))
        return own.encoder.encode(work, inputs)

    mesh = Mesh(np.asarray(jax.devices()), (AXIS,))
    same = {name: PartitionSpec() for name in inputs}
    run = jax.shard_map(encode, mesh=mesh, in_specs=(places, same), out_specs=PartitionSpec(),
                        check_vma=False)  # fmt: skip
    found = jax.jit(run)(weights, inputs)
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())


print(json.dumps({family: main(family, label) for family, label in map(lambda a: a.split("/"),
                                                                       sys.argv[1:])}))  # fmt: skip
