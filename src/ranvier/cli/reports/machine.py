"""What `ranvier doctor` and `ranvier collect-env` find, gathered once."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from ranvier.targets.checks import Finding, Kernels, check_cpu, check_machine
from ranvier.targets.neuron.checks import check_neuron, has_neuron, instance_of, neuron_devices
from ranvier.targets.system import Speed, System
from ranvier.version import __version__

__all__ = ["PACKAGES", "environment_document", "examine", "has_failed", "lines"]

PACKAGES = (
    "ranvier", "jax", "jaxlib", "numpy", "ml_dtypes", "msgspec", "starlette", "uvicorn",
    "tokenizers", "jinja2", "jax-neuronx", "libneuronxla", "neuronx-cc", "nki",
)  # fmt: skip
NO_DEVICE = (
    "no Neuron device: this machine serves on its CPU, and compiles for a device elsewhere "
    "(ranvier compile --target neuron-trn2)"
)


def examine(
    system: System, kernels: Kernels, speed: Speed, *, folder: str, target: str = "auto"
) -> list[Finding]:
    """Every finding for a target: auto looks for Neuron devices, neuron demands them."""
    found = check_machine(system, folder)
    if target != "neuron":
        found += check_cpu(system, kernels, speed)
    if target == "neuron" or (target == "auto" and has_neuron(system)):
        return found + check_neuron(system)
    return [*found, Finding("neuron", "ok", NO_DEVICE)]


def has_failed(found: Sequence[Finding]) -> bool:
    return any(finding.status == "failure" for finding in found)


def lines(found: Sequence[Finding]) -> str:
    """One line a finding, the fix below it."""
    width = max(len(finding.name) for finding in found)
    text = []
    for finding in found:
        text.append(f"{finding.status:<8}  {finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            text.append(f"{'':<8}  {'':<{width}}  fix: {finding.fix}")
    counts = {status: sum(f.status == status for f in found) for status in ("warning", "failure")}
    text.append(f"{len(found)} checks, {counts['warning']} warnings, {counts['failure']} failures")
    return "\n".join(text)


def environment_document(system: System, found: Sequence[Finding]) -> dict[str, Any]:
    """What a bug report needs; no secrets: variables whose names tell of keys are left out."""
    secret = ("KEY", "TOKEN", "SECRET", "PASSWORD")
    return {
        "ranvier": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "instance": instance_of(system),
        "neuron_devices": neuron_devices(system),
        "packages": {name: system.package(name) for name in PACKAGES},
        "environment": {
            name: "(set)" if any(word in name for word in secret) else value
            for name, value in system.environment.items()
        },
        "findings": [
            {"name": f.name, "status": f.status, "detail": f.detail, "fix": f.fix} for f in found
        ],
    }
