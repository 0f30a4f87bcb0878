"""Which cores a process may use, and whether an artifact fits them: pure checks of variables.

Source: AWS Neuron documentation of NEURON_RT_VISIBLE_CORES, NEURON_RT_NUM_CORES and
NEURON_LOGICAL_NC_CONFIG. Not seen on hardware by us.
"""

from __future__ import annotations

from collections.abc import Mapping

from ranvier.core.errors import ConfigError, TargetError

__all__ = ["check_cores", "visible_cores"]

VISIBLE, COUNT, LOGICAL = (
    "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES", "NEURON_LOGICAL_NC_CONFIG",
)  # fmt: skip


def visible_cores(text: str) -> tuple[int, ...]:
    """Core numbers of a list such as "0-3,8". Raises ConfigError."""
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{VISIBLE} is {text!r}: not a list such as 0-3,8.")
        stop = int(last) if dash else int(first)
        if stop < int(first) or stop > 4096:
            raise ConfigError(f"{VISIBLE} is {text!r}: {part.strip()} is no range of cores.")
        cores += range(int(first), stop + 1)
    if len(set(cores)) != len(cores):
        raise ConfigError(f"{VISIBLE} is {text!r}: a core is named twice.")
    return tuple(cores)


def check_cores(variables: Mapping[str, str], *, ranks: int, logical_core_config: int) -> None:
    """Refuse variables under which an artifact cannot run. Raises ConfigError, TargetError."""
    visible, count = variables.get(VISIBLE, ""), variables.get(COUNT, "")
    if count and (not count.isdecimal() or int(count) < 1):
        raise ConfigError(f"{COUNT} is {count!r}; it must be a positive integer.")
    # The runtime lets the list win over the count.
    cores = len(visible_cores(visible)) if visible else int(count) if count else None
    if cores is not None and cores < ranks:
        raise TargetError(
            f"{VISIBLE if visible else COUNT} gives {cores} cores; the artifact was compiled for "
            f"{ranks}.",
            hint=f"Give at least {ranks}, or compile with fewer.",
        )
    logical = variables.get(LOGICAL, "")
    if logical and logical != str(logical_core_config):
        raise TargetError(
            f"{LOGICAL} is {logical}; the artifact was compiled for {logical_core_config} "
            "physical cores in a logical one.",
            hint=f"Set {LOGICAL}={logical_core_config}, or leave it out.",
        )
