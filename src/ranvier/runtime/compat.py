"""Private JAX names, all of them, and nothing else.

Executables travel as PJRT's own bytes, never as a pickle.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
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


def compile_stablehlo(text: bytes, device: jax.Device) -> LoadedProgram:
    """Compile StableHLO for a device, without tracing; for build/ alone."""
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    devices = xla_client.DeviceList((device,))
    return LoadedProgram(device.client.compile_and_load(text, devices, options))


def deserialize(data: bytes, device: jax.Device) -> LoadedProgram:
    """Load an executable for a device. Raises what the backend raises."""
    devices = xla_client.DeviceList((device,))
    return LoadedProgram(device.client.deserialize_executable(data, devices, None))


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
        results = self._executable.execute_sharded(arguments)
        return [shards[0] for shards in results.disassemble_into_single_device_arrays()]

    def serialize(self) -> bytes:
        """The executable's bytes. Raises what the backend raises."""
        return bytes(self._executable.serialize())


def hlo_proto(module: Any) -> bytes:
    """A StableHLO module as the serialized HLO module that neuronx-cc reads."""
    computation = _jax.mlir.mlir_module_to_xla_computation(
        str(module).encode(), use_tuple_args=False
    )
    return bytes(computation.as_serialized_hlo_module_proto())
