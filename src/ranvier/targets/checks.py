"""Checks of any machine: system, memory, disk, pages, processor, kernels, speed.

Each gives findings: ok, warning or failure, with the fix. Pure over a System; measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.targets.cpu import Machine, machine, meminfo
from ranvier.targets.system import Speed, System

__all__ = ["Finding", "Kernels", "check_cpu", "check_machine", "operating_system"]

GIB = 2**30
MEMORY_MIN = 2 * GIB
DISK_MIN = 10 * GIB
KNOWN_SYSTEMS = {"ubuntu": ("22.04", "24.04"), "amzn": ("2023",)}
"""What the Neuron documentation installs on."""


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    name: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Kernels:
    """The native kernel library as loaded: its ISA, or none."""

    is_present: bool
    isa: str


def operating_system(system: System) -> tuple[str, str, str]:
    """(id, version, pretty name) from /etc/os-release."""
    fields: dict[str, str] = {}
    for line in (system.read("/etc/os-release") or "").splitlines():
        name, _, value = line.partition("=")
        fields[name] = value.strip().strip('"')
    pretty = fields.get("PRETTY_NAME", "unknown system")
    return fields.get("ID", ""), fields.get("VERSION_ID", ""), pretty


def check_machine(system: System, folder: str) -> list[Finding]:
    """System, memory, pages, and disk where artifacts go."""
    _, _, pretty = operating_system(system)
    kernel = (system.read("/proc/sys/kernel/osrelease") or "unknown kernel").strip()
    found = [Finding("system", "ok", f"{pretty}, Linux {kernel}, Python {system.python}")]
    return [*found, _memory(system), _pages(system), _disk(system, folder)]


def check_cpu(system: System, kernels: Kernels, speed: Speed) -> list[Finding]:
    """Processor, kernels in use and measured speed."""
    found = machine(system)
    features = ", ".join(found.features) or "none that a kernel uses"
    lines = [Finding("processor", "ok", f"{found.model}, {found.cores} cores: {features}")]
    lines.append(_kernels(found, kernels))
    lines.append(
        Finding(
            "speed",
            "ok",
            f"{speed.bandwidth_bytes_s / 1e9:.1f} GB/s read by one thread, "
            f"{speed.flops_s / 1e9:,.0f} GFLOP/s in f32 (measured just now, other load included)",
        )
    )
    return lines


def _kernels(found: Machine, kernels: Kernels) -> Finding:
    if not kernels.is_present:
        return Finding(
            "kernels",
            "warning",
            "the native CPU kernels are not built: plain JAX kernels serve, several times slower",
            "Install a C++ compiler and run `python scripts/build_kernels.py`, or install a wheel.",
        )
    has_wide = "avx512f" in found.features or "avx2" in found.features
    if kernels.isa == "generic" and has_wide:
        return Finding(
            "kernels",
            "warning",
            "the generic kernels are in use though the processor has vector instructions",
            "The library was built for another machine type: build it again here.",
        )
    return Finding("kernels", "ok", f"native library, {kernels.isa}")


def _memory(system: System) -> Finding:
    memory = meminfo(system)
    total, free = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB available"
    if free < MEMORY_MIN:
        fix = "End other processes, or lower max_model_len and max_num_seqs."
        return Finding("memory", "warning", f"{detail}; {MEMORY_MIN // GIB} GiB are wanted", fix)
    return Finding("memory", "ok", detail)


def _pages(system: System) -> Finding:
    mode = system.read("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    count = meminfo(system).get("HugePages_Total", 0)
    chosen = mode[mode.find("[") + 1 : mode.find("]")] if "[" in mode else "unknown"
    detail = f"transparent huge pages: {chosen}; reserved huge pages: {count}"
    if chosen == "never":
        fix = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return Finding("huge pages", "warning", f"{detail}; weights are read slower", fix)
    return Finding("huge pages", "ok", detail)


def _disk(system: System, folder: str) -> Finding:
    free = system.free_bytes(folder)
    if free is None:
        return Finding("disk", "warning", f"{folder}: free space is unknown")
    detail = f"{free / GIB:.1f} GiB free for {folder}"
    if free < DISK_MIN:
        fix = "Free space, or name another place with --artifacts or RANVIER_CACHE_ROOT."
        return Finding("disk", "warning", f"{detail}; {DISK_MIN // GIB} GiB are wanted", fix)
    return Finding("disk", "ok", detail)
