"""Tensor parallel as shapes: one core's model, and how its arrays join into the whole one's.

A core holds some query heads with their KV heads, a part of the MLP and a part of the vocabulary;
o, down and the embedding are summed over cores, logits are gathered. Only shapes are made here:
weights are not yet packed for more than one core.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh

from ranvier.build.vision.shards import core_vision, cross_array, split_axis
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.targets.neuron.memory import gqa_rule

__all__ = ["AXIS", "across_cores", "core_spec", "join", "partition"]

AXIS = "tp"
SPLIT = {"qkv": 2, "o": 1, "gate_up": 2, "down": 1, "embed": 2, "head": 2, "qkv_bias": 1, "rank": 0}
"""Which axis of a weight [L, I, O] (bias [L, O]) is cut over cores; others are whole on each."""
HEADS = 3
"""The axis of the caches [L, N, Bt, K, E] that is cut."""


def core_spec(spec: DecoderSpec, cores: int) -> DecoderSpec:
    """The numbers of one of `cores` cores; what does not divide is padded."""
    rule = gqa_rule(spec.heads, spec.kv_heads, cores)
    own = dataclasses.replace(
        spec,
        heads=rule.query_heads // cores,
        kv_heads=rule.kv_heads // cores,
        intermediate=-(-spec.intermediate // cores),
        vocab_size=-(-spec.vocab_size // cores),
    )
    vision = None if spec.vision is None else core_vision(spec.vision, cores)
    extra = -(-spec.embed_rows // cores) - own.vocab_size
    own = dataclasses.replace(own, vision=vision, embed_extra=extra)
    seeing = {array.name: array for array in vision.arrays} if vision else {}
    arrays = (_array(own, seeing.get(array.name, array)) for array in spec.arrays)
    return dataclasses.replace(own, arrays=tuple(arrays))


def _array(own: DecoderSpec, array: ArraySpec) -> ArraySpec:
    """One logical array [L, O, I] of a core."""
    outputs = {
        "qkv": own.qkv_size, "gate_up": 2 * own.intermediate, "embed": own.embed_rows,
        "head": own.vocab_size, "qkv_bias": own.qkv_size,
    }  # fmt: skip
    inputs = {"o": own.heads * own.head_size, "down": own.intermediate}
    shape = list(array.shape)
    if array.name in outputs:
        shape[1] = outputs[array.name]
    if array.name in inputs:
        shape[2] = inputs[array.name]
    return cross_array(own, dataclasses.replace(array, shape=tuple(shape)))


def partition(name: str, rank: int, vision: VisionSpec | None = None) -> Any:
    """How an argument of `rank` axes lies over the cores: a PartitionSpec."""
    at = _axis(name, vision)
    spec: Any = jax.sharding.PartitionSpec
    return spec() if at is None else spec(*(AXIS if i == at else None for i in range(rank)))


def _axis(name: str, vision: VisionSpec | None) -> int | None:
    if name in ("k", "v", "cross_k", "cross_v"):
        return HEADS
    return SPLIT.get(name, split_axis(name, vision))


def join(name: str, struct: Any, cores: int, vision: VisionSpec | None = None) -> Any:
    """The whole of an argument of which `struct` is one core's part."""
    at = _axis(name, vision)
    shape = [size * (cores if i == at else 1) for i, size in enumerate(struct.shape)]
    make: Any = jax.ShapeDtypeStruct
    return make(tuple(shape), struct.dtype)


def across_cores(
    function: Any,
    arguments: tuple[Any, Any, Any],
    cores: int,
    vision: VisionSpec | None = None,
    *,
    has_output: bool = True,
) -> tuple[Any, Any]:
    """(the function over all cores, its arguments) of one core's step and arguments.

    `vision`: the core's encoder, of a model that sees pictures. `has_output`: beside the state.
    """
    weights, state, inputs = (
        {name: partition(name, len(value.shape), vision) for name, value in group.items()}
        for group in arguments
    )
    step = jax.shard_map(
        function, mesh=AbstractMesh((cores,), (AXIS,)), in_specs=(weights, state, inputs),
        out_specs=(state, partition("", 0)) if has_output else state, check_vma=False,
    )  # fmt: skip
    whole = tuple(
        {name: join(name, value, cores, vision) for name, value in group.items()}
        for group in arguments
    )
    return step, whole
