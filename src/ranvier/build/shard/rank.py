"""One rank's part of a model as numbers: its heads, layers, MLP and vocabulary. No arrays.

Ranks are counted stage by stage: a pipeline stage is `tensor` cores that share its layers. A core
holds some query heads with their KV heads and a part of the MLP; the vocabulary is cut over all
ranks of all stages. What does not divide is padded with zeros.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ranvier.build.vision.shards import core_vision, cross_array
from ranvier.core.errors import ConfigError
from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.targets.neuron.memory import gqa_rule

__all__ = ["ONE", "Heads", "Parallel", "heads_of", "rank_spec"]


@dataclass(frozen=True)
class Parallel:
    """How many ranks share a model, along each axis of the mesh."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    def stage(self, rank: int) -> int:
        return rank // self.tensor

    def core(self, rank: int) -> int:
        return rank % self.tensor


ONE = Parallel()


@dataclass(frozen=True)
class Heads:
    """The heads of one core by their number in the model, in order; -1 is padding."""

    query: tuple[int, ...]
    kv: tuple[int, ...]


def heads_of(spec: DecoderSpec, cores: int, core: int) -> Heads:
    """Which heads a core holds: each query head lies with its KV head.

    Query head i of the core attends to its KV head i // (query heads / KV heads). The counts are
    those of `gqa_rule`.
    """
    rule = gqa_rule(spec.heads, spec.kv_heads, cores)
    queries, group = rule.query_heads // cores, spec.heads // spec.kv_heads
    own = range(core * queries, (core + 1) * queries)
    if rule.case == "sharded":
        keys = rule.kv_heads // cores
        return Heads(tuple(own), tuple(range(core * keys, (core + 1) * keys)))
    if rule.case == "replicated":
        copies = cores // spec.kv_heads
        key, first = core // copies, core % copies * queries
        slots = range(first, first + queries)
        return Heads(tuple(key * group + s if s < group else -1 for s in slots), (key,))
    query = tuple(head if head < spec.heads else -1 for head in own)
    return Heads(query, tuple(head if head < 0 else head // group for head in query))


def rank_spec(spec: DecoderSpec, parallel: Parallel) -> DecoderSpec:
    """The numbers and array shapes of any one rank. Raises ConfigError.

    Windows and ropes are those of the first stage's layers: only their count is meant.
    """
    if parallel.ranks == 1:
        return spec
    layers, rest = divmod(spec.layers, parallel.pipeline)
    if rest:
        legal = [n for n in range(1, spec.layers + 1) if spec.layers % n == 0]
        raise ConfigError(
            f"pipeline_parallel_size={parallel.pipeline} does not divide the model's "
            f"{spec.layers} layers.",
            hint=f"Possible are {', '.join(map(str, legal))}.",
        )
    rule = gqa_rule(spec.heads, spec.kv_heads, parallel.tensor)
    own = dataclasses.replace(
        spec,
        layers=layers,
        heads=rule.query_heads // parallel.tensor,
        kv_heads=rule.kv_heads // parallel.tensor,
        intermediate=-(-spec.intermediate // parallel.tensor),
        vocab_size=-(-spec.vocab_size // parallel.ranks),
        windows=spec.windows[:layers],
        ropes_of_layer=spec.ropes_of_layer[:layers],
    )
    vision = None if spec.vision is None else core_vision(spec.vision, parallel.tensor)
    extra = -(-spec.embed_rows // parallel.ranks) - own.vocab_size
    own = dataclasses.replace(own, vision=vision, embed_extra=extra)
    seeing = {array.name: array for array in vision.arrays} if vision else {}
    arrays = (_array(spec, own, seeing.get(array.name, array)) for array in spec.arrays)
    return dataclasses.replace(own, arrays=tuple(arrays))


def _array(spec: DecoderSpec, own: DecoderSpec, array: ArraySpec) -> ArraySpec:
    """One logical array [L, O, I] of a rank; its sources stay those of all layers."""
    outputs = {
        "qkv": own.qkv_size, "gate_up": 2 * own.intermediate, "embed": own.embed_rows,
        "head": own.vocab_size, "qkv_bias": own.qkv_size,
    }  # fmt: skip
    inputs = {"o": own.heads * own.head_size, "down": own.intermediate}
    shape = list(array.shape)
    if array.shape[0] == spec.layers:
        shape[0] = own.layers
    if array.name in outputs:
        shape[1] = outputs[array.name]
    if array.name in inputs:
        shape[2] = inputs[array.name]
    return cross_array(own, dataclasses.replace(array, shape=tuple(shape)))
