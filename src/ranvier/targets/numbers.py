"""What a planner needs to know of a model and of a build: counts, no arrays.

Made from a DecoderSpec by build/numbers.py, read by every target's memory and speed estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ranvier.core.errors import ConfigError

__all__ = [
    "DTYPE_BYTES", "LayerKind", "MemorySizes", "ModelNumbers", "Sharding", "WeightGroup",
    "dtype_bytes",
]  # fmt: skip

LayerKind = Literal["embedding", "attention", "mlp", "experts", "norms", "head", "vision", "other"]
Sharding = Literal["query", "kv", "even", "replicated"]

DTYPE_BYTES = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8_e4m3": 1.0, "float8_e5m2": 1.0,
    "float8_e4m3fn": 1.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5,
}  # fmt: skip
"""Bytes of one element; scales of quantised weights are below 2 % and left out."""


@dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """Weights of one layer kind that are shared out in one way.

    `sharding`: "query" follows the query heads, "kv" the stored KV heads, "even" is cut in equal
    parts, "replicated" is whole on every core. `dtype` None means the build's.
    """

    kind: LayerKind
    elements: int
    sharding: Sharding
    dtype: str | None = None
    is_layered: bool = False
    """Of every layer, so that pipeline stages share it."""


@dataclass(frozen=True, kw_only=True)
class ModelNumbers:
    """A model as counts."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab_size: int
    model_len_max: int
    groups: tuple[WeightGroup, ...]
    experts_active: float = 1.0
    """Share of the expert weights that one token uses."""

    @property
    def parameters(self) -> int:
        return sum(group.elements for group in self.groups)

    def elements(self, *kinds: LayerKind) -> int:
        """Weights of these kinds, all layers."""
        return sum(group.elements for group in self.groups if group.kind in kinds)


@dataclass(frozen=True, kw_only=True)
class MemorySizes:
    """The sizes of a build that memory depends on. Raises ConfigError for sizes below 1."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_tokens: int = 32
    block_count: int | None = None
    """KV blocks with the garbage block; None: every sequence at full length."""
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    program_count: int = 1
    lora_slots: int = 0
    lora_rank: int = 16
    lora_host: int = 0
    """Adapters that host memory keeps."""
    lora_host_bytes: int | None = None
    """A bound on their bytes."""
    draft: ModelNumbers | None = None

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, is {getattr(self, name)}.")
        dtype_bytes(self.dtype)
        dtype_bytes(self.kv_dtype)

    @property
    def blocks(self) -> int:
        """KV blocks, the garbage block included."""
        if self.block_count is not None:
            return self.block_count
        return self.max_num_seqs * math.ceil(self.max_model_len / self.block_tokens) + 1


def dtype_bytes(dtype: str) -> float:
    """Bytes of one element. Raises ConfigError."""
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"Unknown dtype {dtype!r}.", hint=f"Known: {', '.join(DTYPE_BYTES)}.")
    return DTYPE_BYTES[dtype]
