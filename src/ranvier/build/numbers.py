"""From a DecoderSpec to the counts that planners read. No arrays, no jax."""

from __future__ import annotations

import math

from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.targets.numbers import LayerKind, ModelNumbers, Sharding, WeightGroup

__all__ = ["model_numbers"]

KINDS: dict[str, LayerKind] = {
    "embed": "embedding", "qkv": "attention", "o": "attention", "qkv_bias": "attention",
    "o_bias": "attention", "gate_up": "mlp", "down": "mlp", "head": "head", "router": "experts",
    "experts_gate_up": "experts", "experts_down": "experts",
}  # fmt: skip


def model_numbers(spec: DecoderSpec, name: str) -> ModelNumbers:
    """The counts of a model; every array of the spec is in exactly one group."""
    groups = tuple(group for array in spec.arrays for group in _groups(spec, array))
    return ModelNumbers(
        name=name,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        intermediate=spec.intermediate,
        vocab_size=spec.vocab_size,
        model_len_max=spec.model_len_max,
        groups=groups,
    )


def _groups(spec: DecoderSpec, array: ArraySpec) -> list[WeightGroup]:
    elements = math.prod(array.shape)
    dtype = "float32" if array.kind == "plain" else None
    kind = KINDS.get(array.name, "norms" if array.name.endswith("norm") else "other")
    is_layered = array.shape[0] == spec.layers

    def group(elements: int, sharding: Sharding) -> WeightGroup:
        return WeightGroup(
            kind=kind, elements=elements, sharding=sharding, dtype=dtype, is_layered=is_layered
        )

    if array.name in ("qkv", "qkv_bias"):
        query = elements * spec.heads // (spec.heads + 2 * spec.kv_heads)
        return [group(query, "query"), group(elements - query, "kv")]
    if array.name == "o":
        return [group(elements, "query")]
    is_whole = array.kind == "plain" or array.name == "fc"  # fc: of a draft head
    return [group(elements, "replicated" if is_whole else "even")]
