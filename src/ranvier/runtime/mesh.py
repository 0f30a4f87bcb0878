"""The devices that run one model together, and arrays that lie on them.

Rank r of an artifact runs on the r-th device, wherever its process is; a process holds the parts of
its own ranks alone. An array of all ranks is their parts one after another along the first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from ranvier.core.errors import TargetError
from ranvier.runtime.compat import LoadedProgram
from ranvier.runtime.device import open_device
from ranvier.targets.table import Target

__all__ = ["RankMesh", "make_mesh", "mesh_of"]

AXIS = "rank"


@dataclass(frozen=True)
class RankMesh:
    """One device a rank, in the order of ranks."""

    devices: tuple[jax.Device, ...]

    @property
    def platform(self) -> str:
        return str(self.devices[0].platform)

    @cached_property
    def local_ranks(self) -> tuple[int, ...]:
        """The ranks whose devices are this process's."""
        own = jax.process_index(self.devices[0].client)
        return tuple(r for r, device in enumerate(self.devices) if device.process_index == own)

    @cached_property
    def local_devices(self) -> tuple[jax.Device, ...]:
        return tuple(self.devices[rank] for rank in self.local_ranks)

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """One array of the local ranks' parts, which lie on their devices."""
        if len(self.devices) == 1:
            return parts[0]
        first, *rest = parts[0].shape
        shape = (len(self.devices) * first, *rest)
        whole: jax.Array = jax.make_array_from_single_device_arrays(shape, self._own, list(parts))
        return whole

    def same(self, array: NDArray[Any]) -> jax.Array:
        """The same host array on every rank; each process brings its own copy."""
        whole: jax.Array
        if len(self.devices) == 1:
            whole = jax.device_put(array)
            return whole
        parts = [jax.device_put(array, device) for device in self.local_devices]
        whole = jax.make_array_from_single_device_arrays(array.shape, self._same, parts)
        return whole

    def run(self, program: LoadedProgram, arguments: list[jax.Array]) -> list[jax.Array]:
        """A program's outputs; of the last one, which is the same on every rank, a local part."""
        if len(self.devices) == 1:
            return program(arguments)
        *own, same = program.run_ranks(arguments)
        return [*(self.join(parts) for parts in own), same[0]]

    def run_own(self, program: LoadedProgram, arguments: list[jax.Array]) -> list[jax.Array]:
        """The outputs of a program of which each rank has its own."""
        if len(self.devices) == 1:
            return program(arguments)
        return [self.join(parts) for parts in program.run_ranks(arguments)]

    def put(self, parts: Sequence[NDArray[Any]]) -> jax.Array:
        """One array of host arrays, one a local rank."""
        devices = self.local_devices
        return self.join([jax.device_put(x, at) for x, at in zip(parts, devices, strict=True)])

    def zeros(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Zeros of a shape on each rank."""
        return self.join([jnp.zeros(shape, dtype, device=device) for device in self.local_devices])

    @cached_property
    def _own(self) -> NamedSharding:
        return self._sharding(AXIS)

    @cached_property
    def _same(self) -> NamedSharding:
        return self._sharding()

    def _sharding(self, *axes: str) -> NamedSharding:
        spec: Any = jax.sharding.PartitionSpec
        return NamedSharding(Mesh(np.asarray(self.devices), (AXIS,)), spec(*axes))


def mesh_of(array: jax.Array) -> RankMesh:
    """The mesh that an array of all ranks lies on."""
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        return RankMesh(tuple(sharding.mesh.devices.flat))
    return RankMesh(tuple(sharding.device_set))


def make_mesh(target: Target, ranks: int) -> RankMesh:
    """The mesh of a target's first devices, of all processes. Raises TargetError.

    On the CPU the devices have to be asked for before jax looks for any (`device.ask_for_cpus`).
    """
    first = open_device(target)
    if ranks == 1:
        return RankMesh((first,))
    found = jax.devices(target.platform)
    if len(found) < ranks:
        what = "CPU devices of this process" if target.platform == "cpu" else "devices"
        raise TargetError(
            f"{ranks} ranks run the model, and there are {len(found)} {what}.",
            hint="Once jax has made its devices their number stays: start with the largest number "
            "of ranks, or in a process of its own."
            if target.platform == "cpu"
            else "Give a smaller tensor_parallel_size or pipeline_parallel_size.",
        )
    return RankMesh(tuple(found[:ranks]))
