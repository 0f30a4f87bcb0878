"""Checks of a Neuron machine: driver, devices, tools, libraries, versions, cores, environment.

Pure over a System, so recorded machines test them. Not run on Neuron hardware by us: the forms of
the tools' output are those of AWS's documentation.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ranvier.targets.checks import KNOWN_SYSTEMS, Finding, operating_system
from ranvier.targets.neuron.instances import INSTANCES, Instance
from ranvier.targets.neuron.versions import (
    PYTHON,
    RELEASES,
    Release,
    release_of,
    series,
    version_numbers,
)
from ranvier.targets.system import System

__all__ = ["check_neuron", "has_neuron", "instance_of", "neuron_devices"]

LIBRARIES = "/opt/aws/neuron/lib"
PACKAGES = (
    "aws-neuronx-dkms", "aws-neuronx-runtime-lib", "aws-neuronx-collectives", "aws-neuronx-tools",
)  # fmt: skip
INDEX = "--extra-index-url https://pip.repos.neuron.amazonaws.com"


def neuron_devices(system: System) -> list[str]:
    """/dev/neuron0, /dev/neuron1, ... in order of their numbers."""
    names = [name for name in system.entries("/dev") if re.fullmatch(r"neuron\d+", name)]
    return [f"/dev/{name}" for name in sorted(names, key=lambda name: int(name[6:]))]


def instance_of(system: System) -> str:
    """The EC2 instance type that the firmware tells; empty elsewhere."""
    return (system.read("/sys/devices/virtual/dmi/id/product_name") or "").strip()


def has_neuron(system: System) -> bool:
    """Is this an Inferentia or Trainium machine, by its name, its devices or its driver?"""
    is_named = instance_of(system).startswith(("inf2", "trn"))
    return is_named or bool(neuron_devices(system)) or bool(_driver_version(system))


def check_neuron(system: System) -> list[Finding]:
    """Every check in the order in which to mend them."""
    instance = INSTANCES.get(instance_of(system))
    packages = _packages(system)
    compiler = _compiler_version(system)
    runtime = packages.get("aws-neuronx-runtime-lib")
    release = release_of(compiler, runtime)
    return [
        _instance(system, instance),
        _system(system),
        _driver(system),
        *_devices(system, instance),
        *_cores(system),
        *_libraries(system, packages),
        _compiler(compiler),
        _runtime(runtime, compiler, release),
        *_plugin(system, release),
        _python(system),
        *_environment(system, instance),
    ]


def _instance(system: System, instance: Instance | None) -> Finding:
    name = instance_of(system)
    if instance is None:
        known = f"{name or 'unknown instance'}: not in the catalogue"
        return Finding("instance", "warning", known, "`ranvier plan` can't tell what fits here.")
    chip = instance.chip
    return Finding(
        "instance",
        "ok",
        f"{name}: {instance.chips} x {chip.name}, {instance.logical_cores()} logical cores, target "
        f"{chip.target}",
    )


def _system(system: System) -> Finding:
    kind, version, pretty = operating_system(system)
    if version in KNOWN_SYSTEMS.get(kind, ()):
        return Finding("system for Neuron", "ok", pretty)
    known = "Ubuntu 22.04 and 24.04, Amazon Linux 2023"
    return Finding(
        "system for Neuron", "warning", f"{pretty}: the SDK is documented for {known}",
        "Use a Deep Learning AMI (Neuron) of one of these.",
    )  # fmt: skip


def _driver_version(system: System) -> str:
    return (system.read("/sys/module/neuron/version") or "").strip()


def _driver(system: System) -> Finding:
    version = _driver_version(system)
    if version and version_numbers(version)[:1] == (2,):
        return Finding("driver", "ok", f"neuron {version}")
    if version:
        return Finding(
            "driver",
            "failure",
            f"neuron {version} is loaded; inf2 and trn need version 2 of aws-neuronx-dkms",
            "sudo apt-get install aws-neuronx-dkms=2.* && sudo modprobe -r neuron "
            "&& sudo modprobe neuron",
        )
    installed = system.run("modinfo", "-F", "version", "neuron")
    if installed.code == 0 and installed.output.strip():
        detail = f"neuron {installed.output.strip()} is installed but not loaded"
        return Finding("driver", "failure", detail, "sudo modprobe neuron")
    return Finding(
        "driver", "failure", "the neuron kernel module is not installed for this kernel",
        "sudo apt-get install linux-headers-$(uname -r) aws-neuronx-dkms=2.*",
    )  # fmt: skip


def _devices(system: System, instance: Instance | None) -> list[Finding]:
    devices = neuron_devices(system)
    if not devices:
        fix = "Load the driver; in a container pass the devices (--device /dev/neuron0)."
        return [Finding("devices", "failure", "there is no /dev/neuron*", fix)]
    closed = [path for path in devices if not system.can_open(path)]
    if closed:
        return [
            Finding(
                "devices",
                "failure",
                f"no permission on {', '.join(closed)}",
                "Reboot or `sudo udevadm trigger` after installing the driver; or add the user to "
                "the device's group (ls -l /dev/neuron0).",
            )
        ]
    detail = f"{len(devices)} of /dev/neuron*, all open to this user"
    if instance is not None and len(devices) < instance.chips:
        text = f"{detail}; {instance.name} has {instance.chips}"
        return [Finding("devices", "warning", text, "In a container: pass all devices.")]
    return [Finding("devices", "ok", detail)]


def _cores(system: System) -> list[Finding]:
    """What neuron-ls tells: cores, and who holds them."""
    listed = system.run("neuron-ls", "--json-output")
    if listed.code != 0:
        fix = "sudo apt-get install aws-neuronx-tools=2.*; PATH needs /opt/aws/neuron/bin."
        last = listed.output.strip().splitlines()[-1:] or [f"exit code {listed.code}"]
        return [Finding("neuron-ls", "failure", last[0], fix)]
    devices = _listed_devices(listed.output)
    if devices is None:
        return [Finding("neuron-ls", "warning", "its JSON has a form that is not known")]
    cores = sum(int(device.get("nc_count") or 0) for device in devices)
    found = [Finding("neuron-ls", "ok", f"{len(devices)} devices, {cores} cores")]
    busy = {
        f"{process.get('pid')} ({str(process.get('command', '?'))[:60]})"
        for device in devices
        for process in device.get("neuron_processes") or []
        if isinstance(process, dict)
    }
    if busy:
        fix = "End the process, or choose other cores with NEURON_RT_VISIBLE_CORES."
        detail = f"held by {', '.join(sorted(busy))}"
        return [*found, Finding("cores", "failure", detail, fix)]
    return [*found, Finding("cores", "ok", "all free")]


def _listed_devices(output: str) -> list[dict[str, Any]] | None:
    """The devices of `neuron-ls --json-output`: a list, or an object that holds one."""
    start = min((at for at in (output.find("["), output.find("{")) if at >= 0), default=-1)
    try:
        value = json.loads(output[start:]) if start >= 0 else None
    except ValueError:
        return None
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = next((entry for entry in lists if entry and "nc_count" in entry[0]), None)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return None
    return value


def _packages(system: System) -> dict[str, str]:
    """Versions of the system packages, by dpkg or by rpm."""
    found: dict[str, str] = {}
    for command in (
        ("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES),
        ("rpm", "-q", "--qf", "%{NAME} %{VERSION}\n", *PACKAGES),
    ):
        for line in system.run(*command).output.splitlines():
            name, _, version = line.strip().partition(" ")
            if name in PACKAGES and version[:1].isdigit():
                found.setdefault(name, version)
    return found


def _libraries(system: System, packages: dict[str, str]) -> list[Finding]:
    names = system.entries(LIBRARIES)
    found = []
    for title, library, package in (
        ("runtime library", "libnrt.so", "aws-neuronx-runtime-lib"),
        ("collectives library", "libnccom.so", "aws-neuronx-collectives"),
    ):
        if any(name.startswith(library) for name in names):
            version = packages.get(package, "of unknown version")
            found.append(Finding(title, "ok", f"{LIBRARIES}/{library}, {package} {version}"))
        else:
            fix = f"sudo apt-get install {package}=2.*"
            detail = f"{library} is not in {LIBRARIES}"
            found.append(Finding(title, "failure", detail, fix))
    return found


def _compiler_version(system: System) -> str | None:
    packaged = system.package("neuronx-cc")
    if packaged:
        return packaged
    told = system.run("neuronx-cc", "--version")
    match = re.search(r"\d+\.\d+(?:\.\d+)*", told.output) if told.code == 0 else None
    return match[0] if match else None


def _compiler(version: str | None) -> Finding:
    if version is None:
        fix = f"pip install neuronx-cc {INDEX} (or compile on another machine)"
        return Finding("compiler", "warning", "neuronx-cc is not installed", fix)
    return Finding("compiler", "ok", f"neuronx-cc {version}")


def _runtime(runtime: str | None, compiler: str | None, release: Release | None) -> Finding:
    """Compiler and runtime against the table."""
    known = "; ".join(
        f"SDK {r.sdk}: compiler {r.compiler}, runtime {r.runtime}" for r in RELEASES if r.compiler
    )
    pair = f"compiler {compiler or 'unknown'}, runtime {runtime or 'unknown'}"
    if release is None:
        fix = f"Known to belong together: {known}."
        return Finding("versions", "warning", f"{pair}: not in the table", fix)
    if runtime and release.runtime and series(runtime) != release.runtime:
        return Finding(
            "versions",
            "failure",
            f"{pair} do not belong together: SDK {release.sdk} has runtime {release.runtime}",
            f"sudo apt-get install aws-neuronx-runtime-lib={release.runtime}.* "
            f"aws-neuronx-collectives",
        )
    return Finding("versions", "ok", f"{pair}: SDK {release.sdk}")


def _plugin(system: System, release: Release | None) -> list[Finding]:
    """The JAX plugin, and JAX against the table."""
    jax = system.package("jax") or "none"
    plugin, library = system.package("jax-neuronx"), system.package("libneuronxla")
    fix = f"pip install 'ranvier[neuron]' {INDEX}"
    if library is None:
        return [Finding("plugin", "failure", "libneuronxla is not installed", fix)]
    detail = f"libneuronxla {library}, jax-neuronx {plugin or 'none'}, jax {jax}"
    reference = release or RELEASES[0]
    if series(library, 1) != reference.libneuronxla:
        text = f"{detail}: SDK {reference.sdk} needs libneuronxla {reference.libneuronxla}.*"
        return [Finding("plugin", "failure", text, fix)]
    if series(jax) not in reference.jax:
        text = f"{detail}: SDK {reference.sdk} takes JAX {', '.join(reference.jax)}"
        return [Finding("plugin", "failure", text, f"pip install 'jax=={reference.jax[-1]}.*'")]
    return [Finding("plugin", "ok", detail)]


def _python(system: System) -> Finding:
    own = version_numbers(system.python)[:2]
    low, high = PYTHON
    if low <= own <= high:
        return Finding("python for Neuron", "ok", system.python)
    text = f"{system.python}: the SDK takes {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Finding("python for Neuron", "failure", text, f"Use Python {high[0]}.{high[1]}.")


def _environment(system: System, instance: Instance | None) -> list[Finding]:
    """Variables that are known to hurt, and core settings that can't be."""
    given = system.environment
    found = []
    lnc = given.get("NEURON_LOGICAL_NC_CONFIG")
    if lnc is not None and instance is not None:
        legal = [str(count) for count in instance.chip.logical_core_configs]
        if lnc not in legal:
            text = f"NEURON_LOGICAL_NC_CONFIG={lnc}: {instance.chip.name} allows {', '.join(legal)}"
            found.append(Finding("environment", "failure", text, "Unset it."))
    for name, harm in (
        ("NEURON_RT_STOCHASTIC_ROUNDING_EN", "results differ from run to run"),
        ("NEURON_RUN_TRIVIAL_COMPUTATION_ON_CPU", "programs may run on the host, far slower"),
    ):
        if given.get(name, "0") not in ("", "0"):
            text = f"{name}={given[name]}: {harm}"
            found.append(Finding("environment", "warning", text, f"unset {name}"))
    return found or [Finding("environment", "ok", "nothing set that hurts")]
