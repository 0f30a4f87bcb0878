"""Which rows and columns of a checkpoint's tensors a rank takes.

`CUTS` is the table of what is cut, by the name of the packed array; what it does not name is whole
on every rank of a stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ranvier.build.shard.rank import Parallel, heads_of
from ranvier.build.vision.shards import Side, tower_runs
from ranvier.core.errors import ConfigError
from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.weights.quantised import SUPER, QuantTensor
from ranvier.weights.shards.runs import Run, Runs, take

__all__ = ["CUTS", "Shard", "cut", "cut_quantised"]

Axis = Literal["heads", "queries", "keys", "mlp", "vocabulary"]

CUTS: dict[str, tuple[Side, Axis]] = {
    "qkv": ("outputs", "heads"),
    "qkv_bias": ("outputs", "heads"),
    "o": ("inputs", "queries"),
    "gate_up": ("outputs", "mlp"),
    "down": ("inputs", "mlp"),
    "embed": ("outputs", "vocabulary"),
    "head": ("outputs", "vocabulary"),
    "cross_q": ("outputs", "queries"),
    "cross_o": ("inputs", "queries"),
    "cross_gate_up": ("outputs", "mlp"),
    "cross_down": ("inputs", "mlp"),
    "vision.cross_kv": ("outputs", "keys"),
}
"""Name of an array -> (the side of its matrices that is cut, along what). Towers of encoders are
cut as build/vision/shards says."""
GATED = ("gate_up", "cross_gate_up")
RANKS_TOLD = 64


Change = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model's arrays."""

    spec: DecoderSpec
    parallel: Parallel
    rank: int

    def layers(self, array: ArraySpec) -> range:
        """The entries of `array.sources` that are this rank's."""
        count = len(array.sources)
        if count != self.spec.layers:
            return range(count)
        each = count // self.parallel.pipeline
        first = self.parallel.stage(self.rank) * each
        return range(first, first + each)

    def runs(self, name: str) -> tuple[Side, tuple[Runs, ...]] | None:
        """Which side of an array is cut, and for each of its parts what is taken; None: all."""
        if self.parallel.ranks == 1:
            return None
        if name not in CUTS:
            core = self.parallel.core(self.rank)
            return tower_runs(self.spec.vision, name, self.parallel.tensor, core)
        side, axis = CUTS[name]
        if axis in ("heads", "queries", "keys"):
            return side, self._heads(axis)
        if axis == "vocabulary":
            size = self.spec.embed_rows if name == "embed" else self.spec.vocab_size
            return side, (_even(size, self.parallel.ranks, self.rank),)
        core = self.parallel.core(self.rank)
        part = _even(self.spec.intermediate, self.parallel.tensor, core)
        return side, (part, part) if name in GATED else (part,)

    def _heads(self, axis: Axis) -> tuple[Runs, ...]:
        spec, parallel = self.spec, self.parallel
        own = heads_of(spec, parallel.tensor, parallel.core(self.rank))
        query, kv = (_merged(heads, spec.head_size) for heads in (own.query, own.kv))
        return {"queries": (query,), "keys": (kv, kv)}.get(axis, (query, kv, kv))


def cut(parts: list[NDArray[Any]], array: ArraySpec, shard: Shard) -> list[NDArray[Any]]:
    """A rank's part of one layer's tensors; only what is taken is read of a mapped file."""
    found = shard.runs(array.name)
    if found is None:
        return parts
    side, runs = found
    axis = 0 if side == "outputs" else 1
    return [take(part, own, axis) for part, own in zip(parts, runs, strict=True)]


def cut_quantised(parts: list[QuantTensor], array: ArraySpec, shard: Shard) -> list[QuantTensor]:
    """A rank's part of one layer's quantised matrices. Raises ConfigError: a group is torn."""
    found = shard.runs(array.name)
    if found is None:
        return parts
    side, runs = found
    if side == "outputs":
        return [_outputs(part, own) for part, own in zip(parts, runs, strict=True)]
    return [_inputs(part, own, array.name, shard) for part, own in zip(parts, runs, strict=True)]


def _outputs(tensor: QuantTensor, runs: Runs) -> QuantTensor:
    """Some outputs of a matrix; what is padded has scale 0."""

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        return take(array, runs, 0)

    return replace(_scales(tensor, rows, rows), codes=rows(tensor.codes))


def _inputs(tensor: QuantTensor, runs: Runs, name: str, shard: Shard) -> QuantTensor:
    """Some inputs of a matrix, in whole groups; what is padded has scale 0."""
    codes = take(tensor.codes, runs, 1)
    inputs = tensor.shape[1]
    if tensor.group == inputs and tensor.levels is None:
        is_padding = take(np.ones(inputs, np.int8), runs, 0) == 0
        zero = np.int64(tensor.zero) if tensor.zeros is None else tensor.zeros[:, :1]
        if is_padding.any() and tensor.offsets is not None:
            raise ConfigError(f"{name}: its padding has no code of value 0.")
        codes = np.where(is_padding, zero, codes).astype(tensor.codes.dtype)
        return replace(tensor, codes=codes, group=codes.shape[1])
    unit = tensor.group if tensor.levels is None else SUPER
    if any(run.start % unit or run.count % unit for run in runs):
        raise _torn(name, tensor, unit, shard)

    def grouped(size: int) -> Change:
        own = tuple(Run(run.start // size, run.count // size) for run in runs)
        return lambda array: take(array, own, 1)

    return replace(_scales(tensor, grouped(tensor.group), grouped(SUPER)), codes=codes)


def _scales(tensor: QuantTensor, change: Change, outer: Change) -> QuantTensor:
    """The tensor with everything but its codes changed; `outer` is for the outer scales."""

    def own(array: Any, by: Change = change) -> Any:
        return None if array is None else by(array)

    levels = tensor.levels
    if levels is not None:
        levels = replace(
            levels, outer=own(levels.outer, outer), codes=own(levels.codes),
            least_outer=own(levels.least_outer, outer), least_codes=own(levels.least_codes),
        )  # fmt: skip
    return replace(
        tensor, scales=own(tensor.scales), zeros=own(tensor.zeros), offsets=own(tensor.offsets),
        levels=levels,
    )  # fmt: skip


def _torn(name: str, tensor: QuantTensor, unit: int, shard: Shard) -> ConfigError:
    """Groups that a cut would tear, and the degrees at which it would not."""
    spec, size = shard.spec, shard.parallel.tensor

    def own(cores: int) -> int:
        if name not in CUTS:
            return tensor.shape[1] // (1 if tensor.shape[1] % cores else cores)
        if CUTS[name][1] == "mlp":
            return -(-spec.intermediate // cores)
        return len(heads_of(spec, cores, 0).query) * spec.head_size

    legal = [n for n in range(1, RANKS_TOLD + 1) if own(n) % unit == 0]
    return ConfigError(
        f"tensor_parallel_size={size}: {name} has {tensor.shape[1]} inputs, {own(size)} of them on "
        f"a core, and its quantised weights have groups of {unit}, which are not cut.",
        hint=f"Possible here are {', '.join(map(str, legal))}; or --quantization none.",
    )


def _even(size: int, count: int, index: int) -> Runs:
    """The index-th of `count` equal parts of `size`, the last ones padded."""
    each = -(-size // count)
    start = min(index * each, size)
    live = min(each, size - start)
    return tuple(run for run in (Run(start, live), Run(-1, each - live)) if run.count)


def _merged(heads: tuple[int, ...], size: int) -> Runs:
    """Rows of heads, neighbours joined."""
    runs: list[Run] = []
    for head in heads:
        start, last = (head * size if head >= 0 else -1), runs[-1] if runs else None
        if last is not None and (
            (start < 0 and last.start < 0) or (last.start >= 0 and start == last.start + last.count)
        ):
            runs[-1] = Run(last.start, last.count + size)
        else:
            runs.append(Run(start, size))
    return tuple(runs)
