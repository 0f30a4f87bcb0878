"""EngineOrder: what a front tells the process of its engine, as JSON on stdin."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

from ranvier.cli.options.cluster import device_count
from ranvier.cli.options.settings import Options, machine_variables
from ranvier.cluster.detect import Place
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.cores import visible_cores

__all__ = ["EngineOrder", "Share", "neuron_variables"]

ROOT_PORT = 2
"""That of Neuron's root, counted from the port of the control channel; jax's is the one before."""
VISIBLE = {"neuron": "NEURON_RT_VISIBLE_CORES", "cuda": "CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Share:
    """One of `count` replicas on this machine."""

    index: int
    count: int


@dataclass(frozen=True)
class EngineOrder:
    """`place` and `key` of a rank of many; `share` of a replica of many."""

    options: Options
    place: Place | None = None
    key: bytes = b""
    timeout_s: float = 0.0
    share: Share | None = None

    def dump(self) -> bytes:
        """For stdin: no argument of a process, which others could see, holds the key."""
        return json.dumps({**dataclasses.asdict(self), "key": self.key.hex()}).encode()

    @classmethod
    def load(cls, text: str | bytes) -> EngineOrder:
        """What dump() wrote."""
        found = json.loads(text)
        place, share = found["place"], found["share"]
        return cls(
            options=Options(**found["options"]),
            place=None if place is None else Place(**place),
            key=bytes.fromhex(found["key"]),
            timeout_s=found["timeout_s"],
            share=None if share is None else Share(**share),
        )

    def tell_neuron(self) -> None:
        """Set Neuron's variables of this rank where they are not set, before jax is imported."""
        named = self.options.target or self.options.device
        if self.place is not None and (named == "auto" or named.startswith("neuron")):
            known = neuron_variables(self.place, device_count(self.options))
            for name, value in known.items():
                os.environ.setdefault(name, value)

    def take_share(self) -> None:
        """Keep to this replica's part of the machine; has to come before jax looks for devices.

        Cores of the host are divided among replicas; devices are numbered off, as many a replica as
        it has ranks.
        """
        if self.share is None:
            return
        index, count = self.share.index, self.share.count
        cores = sorted(os.sched_getaffinity(0))
        each = len(cores) // count
        if each:
            os.sched_setaffinity(0, cores[index * each : (index + 1) * each])
        devices = device_count(self.options)
        for variable in _variables(self.options):
            os.environ[variable] = _numbers(variable, index * devices, devices)


def neuron_variables(place: Place, devices: int) -> dict[str, str]:
    """What Neuron's PJRT plugin reads of a rank, where `devices` are shared by all ranks."""
    each = devices // place.count
    return {
        "NEURON_RT_ROOT_COMM_ID": f"{place.address}:{place.port + ROOT_PORT}",
        "NEURON_PJRT_PROCESSES_NUM_DEVICES": ",".join([str(each)] * place.count),
        "NEURON_PJRT_PROCESS_INDEX": str(place.rank),
    }


def _variables(options: Options) -> list[str]:
    """Those by which the platform's runtime is told its devices; all where it is to be found."""
    named = options.target or options.device
    return [v for name, v in VISIBLE.items() if named == "auto" or named.startswith(name)]


def _numbers(variable: str, first: int, count: int) -> str:
    """`count` devices from the `first` on, of those that the variable lets this machine use."""
    named = machine_variables(variable).get(variable, "")
    known = visible_cores(named) if named else tuple(range(first + count))
    if len(known) < first + count:
        raise ConfigError(
            f"{variable} is {named!r}: {len(known)} devices, and this replica needs numbers "
            f"{first} to {first + count - 1} of them.",
            hint="Give more, or a smaller data_parallel_size or tensor_parallel_size.",
        )
    return ",".join(map(str, known[first : first + count]))
