"""Private JAX names, all of them, and nothing else.

Executables travel as PJRT's own bytes, never as a pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src import distributed, xla_bridge
from jax._src.lib import _jax, xla_client  # type: ignore[attr-defined]

__all__ = [
    "LoadedProgram",
    "bind_collectives",
    "compile_stablehlo",
    "deserialize",
    "hlo_proto",
    "serialize",
]


def serialize(compiled: Any) -> bytes:
    """The bytes of a compiled program's executable."""
    return bytes(compiled.runtime_executable().serialize())


def compile_stablehlo(text: bytes, devices: Sequence[jax.Device]) -> LoadedProgram:
    """Compile StableHLO of one rank for all of them, without tracing; for build/ alone."""
    client, options = devices[0].client, _options(devices)
    return LoadedProgram(
        client.compile_and_load(text, xla_client.DeviceList(tuple(devices)), options)
    )


def deserialize(data: bytes, devices: Sequence[jax.Device]) -> LoadedProgram:
    """Load an executable for the devices of its ranks. Raises what the backend raises."""
    client = devices[0].client
    options = _options(devices) if len(devices) > 1 else None
    return LoadedProgram(
        client.deserialize_executable(data, xla_client.DeviceList(tuple(devices)), options)
    )


def _options(devices: Sequence[jax.Device]) -> Any:
    """Each rank is a replica, on its device."""
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    ids = np.asarray([[device.id] for device in devices])
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    return options


def bind_collectives(address: str) -> None:
    """Let the CPU's collectives between processes listen at an address of this host.

    By themselves they take what the host's name stands for, which is often loopback.
    """
    client = distributed.global_state.client
    collectives = _jax.make_gloo_tcp_collectives(distributed_client=client, hostname=address)
    factory = partial(xla_bridge.make_cpu_client, collectives=collectives)
    xla_bridge.register_backend_factory("cpu", factory, fail_quietly=False)


class LoadedProgram:
    """A loaded executable: flat arrays in, flat arrays out; donated inputs are consumed."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def __call__(self, arguments: list[jax.Array]) -> list[jax.Array]:
        """The outputs on the first local device."""
        return [parts[0] for parts in self.run_ranks(arguments)]

    def run_ranks(self, arguments: list[jax.Array]) -> list[list[jax.Array]]:
        """Each output by the local devices, in the order of their ranks."""
        results = self._executable.execute_sharded(arguments)
        outputs: list[list[jax.Array]] = results.disassemble_into_single_device_arrays()
        return outputs

    def serialize(self) -> bytes:
        """The executable's bytes. Raises what the backend raises."""
        return bytes(self._executable.serialize())


def hlo_proto(module: Any) -> bytes:
    """A StableHLO module as the serialized HLO module that neuronx-cc reads."""
    computation = _jax.mlir.mlir_module_to_xla_computation(
        str(module).encode(), use_tuple_args=False
    )
    return bytes(computation.as_serialized_hlo_module_proto())
