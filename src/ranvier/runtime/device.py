"""Which devices this process has, and which target they are."""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.core.errors import TargetError
from ranvier.targets.table import TARGETS, Target

__all__ = [
    "ask_for_cpus",
    "describe",
    "describe_default",
    "is_present",
    "local_target",
    "on_cpu",
    "open_device",
]

GENERATION = re.compile(r"inf2|trn[123]")
INSTALL = {
    "cuda": "Install it with: pip install 'ranvier[cuda]'; or choose --device cpu.",
    "neuron": "Run on an Inferentia or Trainium instance with the Neuron PJRT plugin installed.",
    "cpu": "",
}


def open_device(target: Target) -> jax.Device:
    """The first local device of a target; later arrays go there. Raises TargetError."""
    _launch_inline()
    try:
        device = jax.local_devices(backend=target.platform)[0]
    except (RuntimeError, IndexError) as error:
        raise TargetError(
            f"{target.name}: jax finds no {target.platform} device here; it has "
            f"{jax.default_backend()}.",
            hint=INSTALL[target.platform],
        ) from error
    _check_generation(target, device)
    jax.config.update("jax_default_device", device)  # type: ignore[no-untyped-call]
    return device


def ask_for_cpus(count: int) -> None:
    """Let the CPU count as several devices, where jax has not made its devices yet.

    A number that was asked for before stays: a process of several has its own share.
    """
    if count <= 1 or _cpus() > 0:
        return
    with contextlib.suppress(RuntimeError):  # they are made: make_mesh says what that means
        jax.config.update("jax_num_cpu_devices", count)  # type: ignore[no-untyped-call]
        jax.config.update("jax_cpu_enable_async_dispatch", True)  # type: ignore[no-untyped-call]


def is_present(target: Target) -> bool:
    """Whether this process has a device of the target."""
    try:
        open_device(target)
    except TargetError:
        return False
    return True


def _check_generation(target: Target, device: jax.Device) -> None:
    """Refuse a Neuron device that says it is of another generation than the target."""
    found = GENERATION.search(device.device_kind.lower())
    if device.platform == "neuron" and found and found[0] != target.compiler_target:
        raise TargetError(
            f"The artifact is for {target.name}; the device here calls itself "
            f"{device.device_kind!r}.",
            hint=f"Compile it with --target neuron-{found[0]}.",
        )


def local_target() -> Target:
    """The target of jax's default device; a device that has none is passed over for the CPU."""
    _launch_inline()
    device = jax.local_devices()[0]
    if device.platform in ("gpu", "cuda"):
        return TARGETS["cuda"] if "cuda" in device.client.platform_version.lower() else _cpu()
    if device.platform == "neuron":
        found = GENERATION.search(device.device_kind.lower())
        if found is None:
            raise TargetError(
                f"The Neuron device calls itself {device.device_kind!r}, which is not known.",
                hint="Name the target: --target neuron-trn2.",
            )
        return TARGETS[f"neuron-{found[0]}"]
    return _cpu()


def on_cpu() -> AbstractContextManager[Any]:
    """Within it arrays and programs are the CPU's, whatever the default device is."""
    context: AbstractContextManager[Any] = jax.default_device(jax.local_devices(backend="cpu")[0])
    return context


def describe_default() -> dict[str, str]:
    """What the default device is and which versions drive it."""
    device = jnp.zeros(()).devices().pop()
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "version": device.client.platform_version,
        "jax": jax.__version__,
    }


def describe(target: Target) -> str:
    """Kind of the device and version of its compiler, for the fingerprint. Raises TargetError."""
    device = open_device(target)
    return f"{device.device_kind} {device.client.platform_version}"


def _launch_inline() -> None:
    """Let the CPU run a program in the thread that launches it, from the first client on.

    A step on the CPU leaves nothing to overlap with, and handing it to another thread costs 3 to
    10 % of a decode step. Several CPU devices each need a thread: their collectives wait for one
    another.
    """
    if _cpus() > 1:
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # type: ignore[no-untyped-call]


def _cpu() -> Target:
    return TARGETS["cpu"]


def _cpus() -> int:
    """How many CPU devices jax was asked for; below 1: its default."""
    count: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    return count
