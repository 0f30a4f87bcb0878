"""The least time that a step can take, from bytes read and operations done. A floor, no forecast.

Left out, because no public source gives them: collectives, launches, padding, and how much of the
peak a kernel reaches. `PUBLISHED` shows how far a real system was from the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ranvier.targets.numbers import ModelNumbers, dtype_bytes

__all__ = ["DECODE_FORMULA", "PREFILL_FORMULA", "PUBLISHED", "Core", "Floor", "decode", "prefill"]

DECODE_FORMULA = (
    "max((weight bytes + rows x context x KV bytes of a token) / bandwidth, "
    "rows x 2 x weights used / TP / FLOP/s), per core"
)
PREFILL_FORMULA = (
    "max(weight bytes / bandwidth, (tokens x 2 x weights used + 2 x layers x heads x head size x "
    "tokens^2) / TP / FLOP/s), per core"
)
PUBLISHED = (
    "Floors leave out collectives, launches and padding. For scale, AWS published 19.6 ms a token "
    "and 814 ms to the first token for Llama 3.3 70B in bfloat16 on trn2.48xlarge at TP 64."
)


@dataclass(frozen=True, kw_only=True)
class Core:
    """One core (or one whole machine): its speed, and what it holds of the model."""

    bandwidth_bytes_s: float
    flops_s: float
    weight_bytes: int
    kv_heads: int
    tensor_parallel: int = 1


@dataclass(frozen=True)
class Floor:
    """One estimate with its two terms, in seconds."""

    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_s >= self.compute_s else "compute"


def decode(model: ModelNumbers, core: Core, *, kv_dtype: str, rows: int, context: int) -> Floor:
    """One token for each of `rows` sequences at `context`."""
    token = 2 * model.layers * core.kv_heads * model.head_size * dtype_bytes(kv_dtype)
    read = core.weight_bytes + rows * context * token
    work = rows * 2 * _used(model) / core.tensor_parallel
    return Floor(read / core.bandwidth_bytes_s, work / core.flops_s)


def prefill(model: ModelNumbers, core: Core, *, tokens: int) -> Floor:
    """A prompt of `tokens`; causal attention is half of a square's work."""
    work = tokens * 2 * _used(model)
    work += 2 * model.layers * model.heads * model.head_size * tokens**2
    memory = core.weight_bytes / core.bandwidth_bytes_s
    return Floor(memory, work / core.tensor_parallel / core.flops_s)


def _used(model: ModelNumbers) -> int:
    """Weights that one token multiplies: no embedding table, the active experts only."""
    experts = model.elements("experts")
    dense = model.parameters - model.elements("embedding", "vision") - experts
    head = 0 if model.elements("head") else model.hidden * model.vocab_size
    return dense + head + math.ceil(experts * model.experts_active)
