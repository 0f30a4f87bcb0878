"""Machines as `ranvier doctor` would meet them, written down as files and command output."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from ranvier.targets.system import CommandResult

__all__ = ["GOOD_TRN2", "PLAIN", "RecordedMachine", "changed", "neuron_ls"]


@dataclass(frozen=True)
class RecordedMachine:
    """A System that answers from tables."""

    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    commands: dict[str, CommandResult] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    free: int = 500 * 2**30
    python: str = "3.12.4"

    def run(self, *command):
        missing = CommandResult(127, f"{command[0]}: not found")
        return self.commands.get(command[0], missing)

    def read(self, path):
        return self.files.get(path)

    def entries(self, path):
        return self.folders.get(path, [])

    def can_open(self, path):
        return path not in self.closed

    def free_bytes(self, path):
        return self.free

    def package(self, name):
        return self.packages.get(name)


def neuron_ls(devices=16, processes=()):
    """The documented fields of `neuron-ls --json-output`."""
    listed = [
        {
            "neuron_device": device,
            "bdf": f"{device:02x}:00.0",
            "connected_to": None,
            "nc_count": 8,
            "memory_size": 96 * 2**30,
            "neuron_processes": [dict(process) for process in processes] if device == 0 else [],
        }
        for device in range(devices)
    ]
    return CommandResult(0, json.dumps(listed))


PLAIN = RecordedMachine(
    files={
        "/etc/os-release": 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
        "/proc/sys/kernel/osrelease": "6.8.0-1021-aws\n",
        "/proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 30000000 kB\nHugePages_Total: 0\n",
        "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 fma avx512f\n"
        "processor\t: 1\nmodel name\t: Xeon\nflags\t\t: fpu avx2 fma avx512f\n",
        "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
)
GOOD_TRN2 = replace(
    PLAIN,
    files={
        **PLAIN.files,
        "/sys/devices/virtual/dmi/id/product_name": "trn2.48xlarge\n",
        "/sys/module/neuron/version": "2.31.12.0\n",
    },
    folders={
        "/dev": ["null", *(f"neuron{i}" for i in range(16))],
        "/opt/aws/neuron/lib": ["libnccom.so.2", "libnrt.so.1", "libnrt.so"],
    },
    commands={
        "neuron-ls": neuron_ls(),
        "dpkg-query": CommandResult(
            0, "aws-neuronx-runtime-lib 2.35.30.0\naws-neuronx-collectives 2.35.10.0\n"
        ),
    },
    packages={
        "neuronx-cc": "2.28.7631.0+abc",
        "jax": "0.10.0",
        "jax-neuronx": "0.10.0.1.0.14198",
        "libneuronxla": "3.0.1",
    },
)


def changed(machine, *, files=None, commands=None, packages=None, **fields):
    """A machine with some answers replaced; None takes an answer away."""

    def merged(old, new):
        return {k: v for k, v in {**old, **(new or {})}.items() if v is not None}

    return replace(
        machine,
        files=merged(machine.files, files),
        commands=merged(machine.commands, commands),
        packages=merged(machine.packages, packages),
        **fields,
    )
