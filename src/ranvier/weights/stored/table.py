"""Which conventions of quantised folders are read: a literal table by quant_method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.weights.stored.compressed_tensors import compressed_tensors
from ranvier.weights.stored.fp8 import fp8
from ranvier.weights.stored.gptq import awq, gptq
from ranvier.weights.stored.tensors import Fields, Stored

__all__ = ["METHODS", "stored_convention"]

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
