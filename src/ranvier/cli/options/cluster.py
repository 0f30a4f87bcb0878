"""ClusterOptions: over how many processes and hosts a server runs, and whether that is legal."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ranvier.cli.options.settings import (
    Options,
    cache_folder,
    machine_variables,
    nearest,
)
from ranvier.cluster.detect import PORT_DEFAULT, Place, detect
from ranvier.cluster.key import file_key, local_key, text_key
from ranvier.core.errors import ConfigError

__all__ = [
    "BACKENDS",
    "ClusterOptions",
    "check_cluster",
    "cluster_key",
    "device_count",
    "find_place",
]

BACKENDS = ("mp", "ray", "uni")
REPLICAS_MAX = 64
SECRET = "RANVIER_CLUSTER_KEY"
LAUNCHERS = (
    "SLURM_",
    "OMPI_COMM_",
    "PMI_",
    "MPI_LOCALNRANKS",
    "LWS_",
    "JOB_COMPLETION_",
    "NEURON_",
)
"""Prefixes of the variables by which launchers number their processes."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Replicas, and ranks on one or many hosts, by vLLM's names."""

    nnodes: int | None = None
    """Processes, on one or many hosts, that run one model together; started one by one with
    node_rank 0, 1, ... Default: as the launcher says (docs/multi-node.md), else 1."""
    node_rank: int | None = None
    """Which of them this is; 0 serves HTTP."""
    master_addr: str | None = None
    """Address of the host of node_rank 0, the same at all."""
    master_port: int = PORT_DEFAULT
    """Port of node_rank 0 that the others connect to; jax's coordinator takes the next one."""
    cluster_key_file: str | None = None
    """File with the key that all share, 32 characters at least; or the variable
    RANVIER_CLUSTER_KEY. On one host one is made."""
    cluster_start_timeout: float = 600.0
    """Seconds in which every rank must come, and reach each stage of the start."""
    data_parallel_size: int = 1
    """Engines behind this server, each with the whole model on devices of its own."""
    distributed_executor_backend: str | None = None
    """How ranks are started: mp (this command, on each host) or ray (on a Ray cluster)."""


def find_place(cluster: ClusterOptions) -> Place | None:
    """Which rank this process is; None: it is alone. Raises ConfigError."""
    return detect(
        machine_variables(*LAUNCHERS),
        count=cluster.nnodes,
        rank=cluster.node_rank,
        address=cluster.master_addr,
        port=cluster.master_port,
    )


def check_cluster(options: Options, cluster: ClusterOptions, place: Place | None) -> None:
    """Refuse, before anything is built, what cannot run together. Raises ConfigError."""
    replicas, ranks = cluster.data_parallel_size, 1 if place is None else place.count
    if not 1 <= replicas <= REPLICAS_MAX:
        raise ConfigError(f"data_parallel_size is {replicas}; it must be in [1, {REPLICAS_MAX}].")
    if not cluster.cluster_start_timeout > 0:
        raise ConfigError(
            f"cluster_start_timeout is {cluster.cluster_start_timeout}; it must be above 0."
        )
    backend = cluster.distributed_executor_backend
    if backend not in (None, *BACKENDS):
        raise ConfigError(
            f"distributed_executor_backend is {backend!r}.{nearest(backend, BACKENDS)}",
            hint=f"Supported: {', '.join(BACKENDS)}.",
        )
    if replicas > 1 and ranks > 1:
        raise ConfigError(
            f"data_parallel_size={replicas} and {ranks} ranks: one server has several engines or "
            "one engine over several ranks.",
            hint="Start one server for each group of ranks, and a load balancer before them.",
        )
    if backend == "uni" and (replicas > 1 or ranks > 1):
        raise ConfigError(
            f"distributed_executor_backend=uni is one process, not {replicas * ranks}."
        )
    devices = device_count(options)
    if devices % ranks:
        raise ConfigError(
            f"tensor_parallel_size={options.tensor_parallel_size} takes {devices} devices, which "
            f"{ranks} ranks can't share evenly.",
            hint=f"It must be a multiple of {ranks}.",
        )


def device_count(options: Options) -> int:
    """Devices that one engine runs on, at all its ranks together."""
    return options.tensor_parallel_size * options.pipeline_parallel_size


def cluster_key(cluster: ClusterOptions, place: Place) -> bytes:
    """The key of a place. Raises ConfigError when there is none."""
    named = machine_variables(SECRET).get(SECRET)
    if cluster.cluster_key_file is not None:
        if named is not None:
            raise ConfigError(f"Two cluster keys: cluster_key_file and {SECRET}.")
        return file_key(Path(cluster.cluster_key_file).expanduser())
    if named is not None:
        return text_key(named, SECRET)
    if _is_loopback(place.address):
        return local_key(cache_folder())
    raise ConfigError(
        f"Ranks on other hosts ({place.address}) need a key that all share.",
        hint=f"Give --cluster-key-file FILE or {SECRET}: "
        "python3 -c 'import secrets; print(secrets.token_hex(32))' makes one.",
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
