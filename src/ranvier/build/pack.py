"""From a checkpoint to the arrays that programs take: read, convert, pack, one layer at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ranvier.build.quantised import PackedStack, StackPacker, is_packable
from ranvier.build.shard.cut import Shard, cut, cut_quantised
from ranvier.build.shard.rank import ONE, Parallel, rank_spec
from ranvier.core.errors import CheckpointError
from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.nn.kernels.linear.pack import DTYPES, pack_layer, packed_shape
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.renamed import Renamed

__all__ = [
    "Form",
    "check_tensors",
    "constants",
    "pack_ranks",
    "pack_weights",
    "weight_shapes",
    "widened",
]


@dataclass(frozen=True)
class Form:
    """What weights become: dtype, the kernels that read them, kept at their own width or not."""

    dtype: str
    kernels: str
    is_quantised: bool = False
    """Matrices that the checkpoint gives at their own width keep it where the kernels can read it,
    as `name.blob` and `name.table`; elsewhere their rounded values are packed."""


def weight_shapes(
    spec: DecoderSpec, dtype: str, kernels: str, parallel: Parallel = ONE
) -> dict[str, tuple[Any, Any]]:
    """(shape, numpy dtype) of every weight argument of a rank's program, by name."""
    shapes: dict[str, tuple[Any, Any]] = {}
    for array in rank_spec(spec, parallel).arrays:
        if array.kind == "plain":
            shapes[array.name] = (array.shape, np.float32)
        else:
            shapes[array.name] = (packed_shape(array.shape, dtype, kernels), DTYPES[dtype])
    for name, value in constants(Shard(spec, parallel, 0)).items():
        shapes[name] = (value.shape, value.dtype)
    return shapes


def constants(shard: Shard) -> dict[str, NDArray[Any]]:
    """Arrays that come from the config and the rank: nothing is closed over by a program."""
    spec, parallel = shard.spec, shard.parallel
    each = spec.layers // parallel.pipeline
    first = parallel.stage(shard.rank) * each
    own = slice(first, first + each)
    found: dict[str, NDArray[Any]] = {
        "inv_freq": np.asarray([rope.inv_freq for rope in spec.ropes], np.float32),
        "rope_scale": np.asarray([rope.scale for rope in spec.ropes], np.float32),
        "ropes": np.asarray(spec.ropes_of_layer[own], np.int32),
        "windows": np.asarray(spec.windows[own], np.int32),
    }
    if spec.rope_axes:
        found["rope_axes"] = np.eye(3, dtype=np.float32)[:, list(spec.rope_axes)]
    for name, value in spec.vision.constants.items() if spec.vision else ():
        whole = np.asarray(value)
        is_whole = np.issubdtype(whole.dtype, np.integer)
        found[name] = whole.astype(np.int32 if is_whole else np.float32)
    if parallel.ranks > 1:
        found["rank"] = np.asarray([shard.rank], np.int32)
    return found


def pack_weights(
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    dtype: str,
    kernels: str,
    *,
    is_quantised: bool = False,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, packed stack) of every weight of the whole model. As `pack_ranks`."""
    form = Form(dtype, kernels, is_quantised)
    for name, (stack,) in pack_ranks(checkpoint, [Shard(spec, ONE, 0)], form):
        yield name, stack


def pack_ranks(
    checkpoint: Checkpoint, shards: Sequence[Shard], form: Form
) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """Yield (name, its packed stack for each shard) of every weight; the shapes are all equal.

    Raises CheckpointError naming the tensor, ConfigError for groups that can't be cut.
    Cost: each tensor is read once, of a mapped file only what the shards take; at most one stack of
    all shards in its packed form and one layer in f32 are in memory at a time.
    """
    spec = shards[0].spec
    if spec.prefixes:
        checkpoint = Renamed(checkpoint, spec.prefixes)
    check_tensors(checkpoint, spec)
    source = _Rounded(checkpoint) if form.is_quantised else checkpoint
    for array in spec.arrays:
        is_whole = form.is_quantised and form.kernels == "cpu"
        stacks = _whole(checkpoint, array, shards) if is_whole else None
        if stacks is not None:
            yield f"{array.name}.blob", _padded([stack.blob for stack in stacks])
            yield f"{array.name}.table", [stack.table for stack in stacks]
            continue
        yield array.name, _dense(source, array, shards, form)
    own = [constants(shard) for shard in shards]
    for name in own[0]:
        yield name, [values[name] for values in own]


def check_tensors(checkpoint: Checkpoint, spec: DecoderSpec) -> None:
    """Compare every tensor's presence and size with the spec; all faults in one error."""
    names, faults = set(checkpoint.tensor_names()), []
    for array in spec.arrays:
        for sources in array.sources:
            missing = [name for name in sources if name not in names]
            faults += [f"{name} is missing" for name in missing]
            if missing:
                continue
            found = sum(int(np.prod(checkpoint.shape(name))) for name in sources)
            wanted = int(np.prod(array.shape[1:]))
            if found != wanted:
                faults.append(f"{' + '.join(sources)} has {found} elements, the config {wanted}")
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(faults[:5])}{more}.")


def widened(checkpoint: Checkpoint, spec: DecoderSpec, packed: Collection[str]) -> list[str]:
    """Stacks with quantised matrices that are packed as dense values all the same.

    One of their matrices is dense, or of a form that no kernel reads. `packed`: the arrays' names.
    """
    if spec.prefixes:
        checkpoint = Renamed(checkpoint, spec.prefixes)

    def is_quantised(array: ArraySpec) -> bool:
        names = (name for sources in array.sources for name in sources)
        return any(checkpoint.read_quantised(name) is not None for name in names)

    dense = [a for a in spec.arrays if a.kind != "plain" and f"{a.name}.blob" not in packed]
    return [array.name for array in dense if is_quantised(array)]


class _Reader(Protocol):
    def read(self, name: str) -> NDArray[Any]: ...


class _Rounded:
    """Reads what is quantised as its rounded values."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, name: str) -> NDArray[Any]:
        tensor = self._checkpoint.read_quantised(name)
        return self._checkpoint.read(name) if tensor is None else tensor.values()


def _whole(
    checkpoint: Checkpoint, array: ArraySpec, shards: Sequence[Shard]
) -> list[PackedStack] | None:
    """The stacks at their own width; None where a part is dense or of no packable format."""
    if array.kind == "plain":
        return None
    stacks = [StackPacker(array.name, is_gated=array.kind == "gated") for _ in shards]
    for layer, names in enumerate(array.sources):
        owners = [i for i, shard in enumerate(shards) if layer in shard.layers(array)]
        parts = []
        for name in names if owners else ():
            tensor = checkpoint.read_quantised(name)
            if tensor is None or not is_packable(tensor):
                return None
            parts.append(tensor)
        for i in owners:
            stacks[i].add(cut_quantised(parts, array, shards[i]))
    return [stack.finish() for stack in stacks]


def _padded(blobs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The runs of bytes of all ranks at the length of the longest: formats may differ by layer."""
    size = max(len(blob) for blob in blobs)
    return [blob if len(blob) == size else np.pad(blob, (0, size - len(blob))) for blob in blobs]


def _dense(
    source: _Reader, array: ArraySpec, shards: Sequence[Shard], form: Form
) -> list[NDArray[Any]]:
    shape, kind = _shape(array, shards[0], form)
    stacks = [np.empty(shape, kind) for _ in shards]
    for layer, names in enumerate(array.sources):
        owners = [i for i, shard in enumerate(shards) if layer in shard.layers(array)]
        parts = [source.read(name) for name in names] if owners else []
        for i in owners:
            own = cut(parts, array, shards[i])
            at = layer - shards[i].layers(array).start
            stacks[i][at] = _layer(own, array, form, shape[1:])
    return stacks


def _shape(array: ArraySpec, shard: Shard, form: Form) -> tuple[Any, Any]:
    return weight_shapes(shard.spec, form.dtype, form.kernels, shard.parallel)[array.name]


def _layer(
    parts: list[NDArray[Any]], array: ArraySpec, form: Form, shape: tuple[int, ...]
) -> NDArray[Any]:
    if array.kind == "plain":
        flat = np.concatenate([part.astype(np.float32).reshape(-1) for part in parts])
        return (flat + np.float32(array.offset)).reshape(shape)
    # A convolution over patches without overlap is a linear of their values.
    wide = [part.astype(np.float32).reshape(len(part), -1) for part in parts]
    wide = [part.T for part in wide] if array.is_transposed else wide
    is_gated = array.kind == "gated"
    return pack_layer(wide, is_gated=is_gated, dtype=form.dtype, kernels=form.kernels)
