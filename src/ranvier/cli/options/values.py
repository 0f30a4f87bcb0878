"""Values of options: from text, YAML or Python into an option's type. Raises ConfigError."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = ["check_counts", "is_kind", "members", "parse_size", "parse_switch", "read_value"]

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SWITCHES = {"1": True, "true": True, "yes": True, "on": True}
SWITCHES |= {"0": False, "false": False, "no": False, "off": False}


def read_value(name: str, hint: Any, value: Any) -> Any:
    """`value` as an option of type `hint`; text is parsed, nothing else is converted in silence."""
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    for kind in members(hint):
        found = _read(name, kind, value)
        if found is not None:
            return found
    names = " or ".join(_told(kind) for kind in members(hint))
    raise ConfigError(f"{name} must be {names}, is {value!r}.")


def members(hint: Any) -> list[Any]:
    """The types of a union but None; else the type itself."""
    if isinstance(hint, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not types.NoneType]
    return [hint]


def is_kind(hint: Any, kind: type) -> bool:
    """Whether a value of `hint` may be of `kind`."""
    return any(typing.get_origin(member) is kind or member is kind for member in members(hint))


def parse_size(text: str) -> int:
    """1k is 1000, 1K is 1024, 25.6k is 25600; m, g, t, M, G, T alike; auto is -1."""
    if text == "auto":
        return -1
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    try:
        return int(number) if unit == 1 else int(Decimal(number) * unit)
    except (ValueError, ArithmeticError):
        raise ConfigError(f"{text!r} is no whole number or size such as 4096, 4k or 4K.") from None


def parse_switch(text: str) -> bool:
    """1, true, yes, on; 0, false, no, off."""
    if text.lower() not in SWITCHES:
        raise ConfigError(f"{text!r} is no switch; use true or false.")
    return SWITCHES[text.lower()]


def _read(name: str, kind: Any, value: Any) -> Any:
    """The value, or None where it is not of this kind."""
    origin = typing.get_origin(kind) or kind
    if isinstance(value, str):
        return _from_text(name, origin, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value) if all(isinstance(item, str) for item in value) else None
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else None
    is_plain = origin in (bool, int) and type(value) is origin
    return value if is_plain else None


def _from_text(name: str, kind: type, text: str) -> Any:
    try:
        if kind is bool:
            return parse_switch(text)
        if kind is int:
            return parse_size(text)
        if kind is float:
            number = float(text)
            return number if math.isfinite(number) else None
        if kind is tuple:
            return (text,)
        if kind is dict:
            found = json.loads(text)
            return found if isinstance(found, dict) else None
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from None
    except (ValueError, RecursionError):
        return None
    return text


def _told(kind: Any) -> str:
    told = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text",
        tuple: "a list of texts", dict: "a JSON object",
    }  # fmt: skip
    return told[typing.get_origin(kind) or kind]


def check_counts(options: Any) -> None:
    """The numbers of engine options are in their ranges. Raises ConfigError."""
    positive = ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_gpu_blocks_override")
    for name in (*positive, "kv_cache_memory_bytes", "max_model_len"):
        value = getattr(options, name)
        is_auto = name == "max_model_len" and value == -1
        if value is not None and value < 1 and not is_auto:
            raise ConfigError(f"{name} must be a positive integer, is {value!r}.")
    if options.block_size % 32:
        raise ConfigError(f"block_size must be a multiple of 32, is {options.block_size}.")
    share = options.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"gpu_memory_utilization must be in (0, 1], is {share}.")
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"seed must be in [0, 2**32), is {options.seed}.")
