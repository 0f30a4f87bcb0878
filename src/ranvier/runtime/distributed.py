"""This process as one of several under jax's distributed runtime."""

from __future__ import annotations

import socket

import jax

from ranvier.core.errors import ClusterError
from ranvier.runtime.compat import bind_collectives

__all__ = ["join"]


def join(address: str, count: int, rank: int, *, local_devices: int, timeout_s: float) -> None:
    """Meet the other processes at `address`, where rank 0's coordinator listens.

    Has to come before jax looks for devices. On the CPU this process gets `local_devices`, and
    collectives between processes are gloo's. Raises ClusterError.
    """
    own = _own_address(address)
    # SIGTERM is for this process's own handlers.
    jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    jax.config.update("jax_num_cpu_devices", local_devices)  # type: ignore[no-untyped-call]
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            coordinator_bind_address=f"{own}:{address.rpartition(':')[2]}",
            num_processes=count,
            process_id=rank,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout_s),
        )
    except RuntimeError as error:
        raise ClusterError(
            f"Rank {rank} did not meet the others at {address}: {error}",
            hint="That port of rank 0 must be reachable from every host.",
        ) from error
    bind_collectives(own.strip("[]"))


def _own_address(address: str) -> str:
    """This host's address on the way to another; nothing is sent. IPv6 stands in brackets."""
    host, _, port = address.rpartition(":")
    family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)
        found = str(probe.getsockname()[0])
    return f"[{found}]" if ":" in found else found
