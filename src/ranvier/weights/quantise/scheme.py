"""Scheme: what `--quantization` and `ranvier quantize --scheme` may say, parsed strictly."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ranvier.core.errors import CheckpointError, ConfigError

__all__ = ["GROUPS", "SCHEMES", "Scheme", "parse_scheme"]

GROUPS = (128, 64, 32)
"""Inputs that may share a scale, the largest first."""


@dataclass(frozen=True)
class Scheme:
    """How matrices are quantised.

    `group`: inputs that share a scale; 0: one scale an output, or a tensor where `is_per_tensor`.
    `activation_bits` 8: activations are quantised while serving, with one scale a token or one for
    each `activation_group` of its inputs.
    """

    name: str
    kind: Literal["int", "fp8"]
    bits: Literal[4, 8]
    group: int = 0
    is_asymmetric: bool = False
    is_per_tensor: bool = False
    activation_bits: Literal[8, 16] = 16
    activation_group: Literal[0, 64] = 0

    def group_of(self, inputs: int, name: str) -> int:
        """The group for a matrix of so many inputs: the scheme's, or the next that divides them.

        Raises CheckpointError naming the module when none does.
        """
        if not self.group:
            return inputs
        for group in GROUPS:
            if group <= self.group and inputs % group == 0:
                return group
        raise CheckpointError(
            f"{name}: no group of {', '.join(map(str, GROUPS))} divides its {inputs} inputs.",
            hint="Leave the module out (--ignore), or choose int8.",
        )


def _table() -> dict[str, Scheme]:
    found = [
        Scheme("int8", "int", 8),
        Scheme("int8-dynamic", "int", 8, activation_bits=8),
        Scheme("fp8", "fp8", 8),
        Scheme("fp8-channel", "fp8", 8),
        Scheme("fp8-tensor", "fp8", 8, is_per_tensor=True),
        Scheme("int4", "int", 4, group=32),
        Scheme("int4-asym", "int", 4, group=32, is_asymmetric=True),
    ]
    for group in reversed(GROUPS):
        found.append(Scheme(f"int4-g{group}", "int", 4, group=group))
        found.append(Scheme(f"int4-g{group}-asym", "int", 4, group=group, is_asymmetric=True))
    return {scheme.name: scheme for scheme in found}


SCHEMES: dict[str, Scheme] = _table()
"""Every scheme by its name; "int4" is groups of 32, "fp8" one scale an output."""


def parse_scheme(text: str) -> Scheme:
    """The scheme of that name. Raises ConfigError with the nearest known one."""
    found = SCHEMES.get(text)
    if found is not None:
        return found
    near = difflib.get_close_matches(text, SCHEMES, n=1, cutoff=0.5)
    raise ConfigError(
        f"Unknown quantisation scheme {text!r}.{f' Did you mean {near[0]}?' if near else ''}",
        hint=f"Schemes: {', '.join(SCHEMES)}.",
    )
