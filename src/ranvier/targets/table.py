"""What programs can be compiled for: a literal table, and the choice by name.

Knows nothing of jax: whether a device is there is the runtime's question.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ranvier.core.errors import TargetError

__all__ = ["DEVICES", "TARGETS", "Target", "find_target"]

DEVICES = ("auto", "cpu", "cuda", "neuron")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Facts of one target that the build and the runtime act on.

    `platform` is XLA's name; `kernels` the functions that its programs are made of; `is_ragged`
    whether its attention takes any mix of tokens, so that one family of programs is enough;
    `compiler_target` is neuronx-cc's --target; `logical_cores` are the logical core sizes that it
    has, in physical cores, the default first.
    """

    name: str
    platform: Literal["cpu", "cuda", "neuron"]
    kernels: str
    is_ragged: bool
    compiler_target: str = ""
    logical_cores: tuple[int, ...] = (1,)

    @property
    def is_neuron(self) -> bool:
        return bool(self.compiler_target)


def _neuron(name: str, *logical_cores: int) -> Target:
    return Target(
        name=f"neuron-{name}", platform="neuron", kernels="reference", is_ragged=False,
        compiler_target=name, logical_cores=logical_cores,
    )  # fmt: skip


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="cpu", platform="cpu", kernels="cpu", is_ragged=True),
        Target(name="cuda", platform="cuda", kernels="reference", is_ragged=True),
        _neuron("inf2", 1),
        _neuron("trn1", 1),
        _neuron("trn2", 2, 1),
        _neuron("trn3", 2, 1),
    )
}


def find_target(name: str) -> Target:
    """The target of a name. Raises TargetError that names the nearest one."""
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, 1, 0.4)
    raise TargetError(
        f"Unknown target {name!r}." + (f" Did you mean {close[0]}?" if close else ""),
        hint=f"Targets: {', '.join(TARGETS)}.",
    )
