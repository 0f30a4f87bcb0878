"""Which conventions of quantised folders are read: a literal table by quant_method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.selection import module_of
from ranvier.weights.stored.compressed_tensors import compressed_tensors
from ranvier.weights.stored.fp8 import fp8
from ranvier.weights.stored.gptq import awq, gptq
from ranvier.weights.stored.tensors import Fields, Stored, is_named

__all__ = ["METHODS", "names_without_module", "stored_convention"]

METHODS: dict[str, Callable[[Fields], Stored]] = {
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "fp8": fp8,
}


def stored_convention(config: dict[str, Any]) -> Stored | None:
    """The convention that config.json names, None for a dense model. Raises CheckpointError."""
    found = config.get("quantization_config", config.get("compression_config"))
    if found is None:
        return None
    if not isinstance(found, dict):
        raise CheckpointError("config.json: quantization_config must be an object.")
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise CheckpointError(
            f"config.json: the quantisation {method!r} is not supported.",
            hint=f"Supported: {', '.join(METHODS)}; or quantise the dense model with "
            "`ranvier quantize` or --quantization.",
        )
    return METHODS[method](Fields(found))


def names_without_module(config: dict[str, Any], tensors: Iterable[str]) -> list[str]:
    """What config.json leaves out of the quantisation and no tensor belongs to.

    No error: makers list what a model may have (a head that is tied, towers that were taken off).
    Raises CheckpointError, as `stored_convention` does.
    """
    stored = stored_convention(config)
    modules = {module_of(name) for name in tensors} | {"lm_head"}
    return [
        pattern
        for pattern in (stored.ignored if stored else ())
        if not any(is_named(pattern, module) for module in modules)
    ]
