"""Which rank of how many this process is: from options, else from what launched it.

Pure functions of options and variables. Every launcher that is recognised must agree with the
others and with the options: a contradiction is an error that names both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ranvier.core.errors import ConfigError

__all__ = ["PORT_DEFAULT", "Place", "detect", "first_host"]

PORT_DEFAULT = 29510
"""Of the control channel; the next one is that of jax's coordinator."""
LOOPBACK = "127.0.0.1"
NODES = re.compile(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)")


@dataclass(frozen=True)
class Place:
    """One rank: a process with devices. `address` and `port` are where rank 0 listens.

    `source` names what told it.
    """

    rank: int
    count: int
    address: str
    port: int = PORT_DEFAULT
    source: str = "the options"

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class _Hint:
    """What one launcher says; None where it says nothing."""

    source: str
    rank: int | None = None
    count: int | None = None
    address: str | None = None


def detect(
    variables: Mapping[str, str],
    *,
    count: int | None = None,
    rank: int | None = None,
    address: str | None = None,
    port: int | None = None,
) -> Place | None:
    """This process's place; None when it is alone. Given values are those of the options.

    Raises ConfigError for contradictions, and for what is missing.
    """
    given = _Hint("the options", rank, count, address)
    hints = [given, *_launchers(variables)]
    known_count = _agreed("ranks", "count", hints)
    known_rank = _agreed("rank", "rank", hints)
    known_address = next((h.address for h in hints if h.address), None)
    if known_count is None:
        if rank or address:
            raise ConfigError(
                "A rank or an address of rank 0 is given, and no number of ranks.",
                hint="Give --nnodes N.",
            )
        return None
    count = known_count.count
    assert count is not None
    if count < 1:
        raise ConfigError(f"{known_count.source}: {count} ranks; there must be at least 1.")
    if count == 1:
        return None
    if known_rank is None:
        raise ConfigError(
            f"{known_count.source}: {count} ranks, and this one has no number.",
            hint="Give --node-rank R, from 0.",
        )
    found = known_rank.rank
    assert found is not None
    if not 0 <= found < count:
        raise ConfigError(
            f"Rank {found} ({known_rank.source}) is not in [0, {count}) ({known_count.source})."
        )
    if known_address is None:
        raise ConfigError(
            f"{count} ranks ({known_count.source}), and none says where rank 0 is.",
            hint="Give --master-addr ADDRESS, the same at every rank.",
        )
    return Place(found, count, known_address, _port(port), known_rank.source)


def _port(port: int | None) -> int:
    port = PORT_DEFAULT if port is None else port
    if not 0 < port < 2**16 - 1:
        raise ConfigError(f"master_port is {port}; it must be in [1, 65534].")
    return port


def _agreed(what: str, field: str, hints: list[_Hint]) -> _Hint | None:
    """The first hint that has the field. Raises ConfigError when two differ."""
    having = [hint for hint in hints if getattr(hint, field) is not None]
    for other in having[1:]:
        first, second = getattr(having[0], field), getattr(other, field)
        if first != second:
            raise ConfigError(
                f"{what.capitalize()}: {first} by {having[0].source}, {second} by {other.source}.",
                hint="Make them equal, or unset the variables that are left over.",
            )
    return having[0] if having else None


def _launchers(variables: Mapping[str, str]) -> list[_Hint]:
    """What the variables of each launcher say, most specific first."""
    found = (
        _slurm(variables),
        _open_mpi(variables),
        _pmi(variables),
        _leader_worker_set(variables),
        _indexed_job(variables),
        _neuron(variables),
    )
    return [hint for hint in found if hint is not None]


def _slurm(variables: Mapping[str, str]) -> _Hint | None:
    """A task of srun; in a batch script outside srun there is one task, and nothing is said."""
    if "SLURM_STEP_NUM_TASKS" not in variables or "SLURM_PROCID" not in variables:
        return None
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", "")
    return _Hint(
        "Slurm (SLURM_PROCID, SLURM_STEP_NUM_TASKS)",
        _number(variables, "SLURM_PROCID"),
        _number(variables, "SLURM_STEP_NUM_TASKS"),
        first_host(nodes) or None,
    )


def _open_mpi(variables: Mapping[str, str]) -> _Hint | None:
    if "OMPI_COMM_WORLD_RANK" not in variables:
        return None
    return _mpi(variables, "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_SIZE")  # fmt: skip


def _pmi(variables: Mapping[str, str]) -> _Hint | None:
    """MPICH, Intel MPI, Cray. Slurm sets these too; then they must say the same."""
    if "PMI_RANK" not in variables or "PMI_SIZE" not in variables:
        return None
    return _mpi(variables, "PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")


def _mpi(variables: Mapping[str, str], name: str, rank: str, size: str, local: str) -> _Hint:
    count = _number(variables, size)
    is_local = local in variables and _number(variables, local) == count
    address = LOOPBACK if is_local else None
    return _Hint(f"{name} ({rank}, {size})", _number(variables, rank), count, address)


def _leader_worker_set(variables: Mapping[str, str]) -> _Hint | None:
    """A pod of a Kubernetes LeaderWorkerSet."""
    if "LWS_LEADER_ADDRESS" not in variables:
        return None
    return _Hint(
        "LeaderWorkerSet (LWS_WORKER_INDEX, LWS_GROUP_SIZE)",
        _number(variables, "LWS_WORKER_INDEX") if "LWS_WORKER_INDEX" in variables else None,
        _number(variables, "LWS_GROUP_SIZE") if "LWS_GROUP_SIZE" in variables else None,
        variables["LWS_LEADER_ADDRESS"],
    )


def _indexed_job(variables: Mapping[str, str]) -> _Hint | None:
    """A pod of a Kubernetes indexed Job; it is not told how many there are."""
    if "JOB_COMPLETION_INDEX" not in variables:
        return None
    source = "the indexed Job (JOB_COMPLETION_INDEX)"
    return _Hint(source, _number(variables, "JOB_COMPLETION_INDEX"))


def _neuron(variables: Mapping[str, str]) -> _Hint | None:
    """What Neuron's PJRT plugin reads; the root's host is that of rank 0, its port is its own."""
    if "NEURON_PJRT_PROCESS_INDEX" not in variables:
        return None
    listed = variables.get("NEURON_PJRT_PROCESSES_NUM_DEVICES", "")
    root = variables.get("NEURON_RT_ROOT_COMM_ID", "")
    return _Hint(
        "Neuron (NEURON_PJRT_PROCESS_INDEX, NEURON_PJRT_PROCESSES_NUM_DEVICES)",
        _number(variables, "NEURON_PJRT_PROCESS_INDEX"),
        len(listed.split(",")) if listed.strip() else None,
        root.rpartition(":")[0] or None,
    )


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's form: a[03-05,9],b is a03."""
    match = NODES.match(nodes.strip())
    if match is None:
        return ""
    head, numbers, tail = match.groups()
    if numbers is None:
        return head + tail
    return head + re.split("[-,]", numbers)[0] + tail


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name} is {text!r}; it must be a whole number.")
    return int(text)
