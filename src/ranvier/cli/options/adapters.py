"""Options of LoRA adapters: how many, how large, and those that `--lora-modules` names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS

__all__ = [
    "AdapterModule",
    "AdapterOptions",
    "adapter_sizes",
    "check_adapters",
    "join_modules",
    "read_modules",
]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's values of max_lora_rank."""
RANK = 8
"""Ranks are stored in steps of this."""
HOST_DEFAULT = 32
Eviction = Literal["lru", "lfu"]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """The engine's options of adapters, by vLLM's names."""

    enable_lora: bool = False
    """Compile slots for LoRA adapters into the programs (docs/lora.md)."""
    max_loras: int = 1
    """Slots: adapters that one batch can mix."""
    max_lora_rank: int = 16
    """Largest rank of an adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512."""
    max_cpu_loras: int | None = None
    """Adapters kept in host memory; others are read again from their folder. Default 32, or
    max_loras if that is more."""
    max_cpu_lora_bytes: int | None = None
    """Bytes of adapters kept in host memory (sizes such as 4G). Default: what max_cpu_loras of the
    largest rank take, at most 8 GiB."""
    lora_target_modules: tuple[str, ...] = ()
    """Linears that adapters may change (q_proj, v_proj, ...); default: all of the layers."""
    lora_eviction: str = "lru"
    """Which idle adapter leaves its slot: lru, the one unused for longest, or lfu, the one least
    used."""
    lora_lfu_decay_period: int = 128
    """lfu: uses of adapters after which all counts of uses are halved."""
    lora_modules: tuple[str, ...] = ()
    """Adapters to serve from the start, each name=path or a JSON object with name, path and
    pinned (it keeps its slot)."""

    def __post_init__(self) -> None:
        # On its way between processes a tuple is a list.
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    @property
    def eviction(self) -> Eviction:
        """lora_eviction, checked."""
        return "lfu" if self.lora_eviction == "lfu" else "lru"

    @property
    def host_adapters(self) -> int:
        """Adapters in host memory."""
        return self.max_cpu_loras or max(HOST_DEFAULT, self.max_loras)

    def host_bytes(self, adapter_bytes: int) -> int:
        """Bytes of host memory for adapters of at most `adapter_bytes` each. Raises ConfigError."""
        bound = self.max_cpu_lora_bytes
        if bound is None:
            whole = self.host_adapters * adapter_bytes
            return max(adapter_bytes, min(whole, LIMITS.adapters_bytes))
        if bound < adapter_bytes:
            raise ConfigError(
                f"max_cpu_lora_bytes is {bound}; one adapter of rank {self.max_lora_rank} takes up "
                f"to {adapter_bytes} bytes.",
                hint="Give more, or a smaller max_lora_rank or fewer lora_target_modules.",
            )
        return bound


def check_adapters(options: AdapterOptions) -> None:
    """Raises ConfigError for values that cannot be."""
    if not 1 <= options.max_loras <= LIMITS.adapter_slots_max:
        limit = LIMITS.adapter_slots_max
        raise ConfigError(f"max_loras is {options.max_loras}; it must be in [1, {limit}].")
    if options.max_lora_rank not in RANKS:
        told = ", ".join(map(str, RANKS))
        raise ConfigError(f"max_lora_rank is {options.max_lora_rank}; supported: {told}.")
    kept = options.max_cpu_loras
    if kept is not None and kept < options.max_loras:
        raise ConfigError(f"max_cpu_loras is {kept}, less than max_loras={options.max_loras}.")
    if options.lora_eviction not in get_args(Eviction):
        raise ConfigError(f"lora_eviction is {options.lora_eviction!r}; supported: lru, lfu.")
    if options.lora_lfu_decay_period < 1:
        raise ConfigError(
            f"lora_lfu_decay_period is {options.lora_lfu_decay_period}; it must be at least 1."
        )
    if read_modules(options.lora_modules) and not options.enable_lora:
        raise ConfigError("lora_modules needs slots for adapters.", hint="Add --enable-lora.")


def adapter_sizes(options: AdapterOptions) -> dict[str, Any]:
    """The fields of a build's sizes: slots, the rank that they hold, the linears."""
    if not options.enable_lora:
        return {}
    return {
        "adapter_slots": options.max_loras,
        "adapter_rank_max": -(-options.max_lora_rank // RANK) * RANK,
        "adapter_modules": tuple(options.lora_target_modules),
    }


class AdapterModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter to serve from the start."""

    name: str
    path: str
    base_model_name: str | None = None
    pinned: bool = False
    """It keeps its slot."""


def read_modules(values: Sequence[str]) -> list[AdapterModule]:
    """The adapters of `values`. Raises ConfigError, also for a name that comes twice."""
    found = [_read(value) for value in values]
    names = [module.name for module in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"lora_modules: the name {name!r} comes twice.")
    return found


def join_modules(values: Sequence[str], found: Mapping[str, str]) -> tuple[str, ...]:
    """`values` and the adapters of `found`, name to path. Raises ConfigError where they differ."""
    paths = {module.name: module.path for module in read_modules(values)}
    for name, path in found.items():
        if paths.get(name, path) != path:
            raise ConfigError(
                f"The adapter {name!r} is {path} in override_neuron_config and {paths[name]} in "
                "lora_modules.",
                hint="Give one of them, or make them equal.",
            )
    added = [json.dumps({"name": n, "path": p}) for n, p in found.items() if n not in paths]
    return (*values, *added)


def _read(value: str) -> AdapterModule:
    if value.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(value, type=AdapterModule)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(
                f"lora_modules: {value!r}: {error}.",
                hint='In JSON: {"name": ..., "path": ..., "base_model_name": ..., "pinned": true}.',
            ) from None
    name, is_pair, path = value.partition("=")
    if not is_pair or not name or not path:
        raise ConfigError(f"lora_modules: {value!r} is not name=path, and no JSON object.")
    return AdapterModule(name, path)
