"""From a checkpoint to the arrays that programs take: read, convert, pack, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ranvier.build.quantised import PackedStack, StackPacker, is_packable
from ranvier.core.errors import CheckpointError
from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.nn.kernels.linear.pack import DTYPES, pack_layer, packed_shape
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.renamed import Renamed

__all__ = ["check_tensors", "constants", "pack_weights", "weight_shapes"]


def weight_shapes(spec: DecoderSpec, dtype: str, kernels: str) -> dict[str, tuple[Any, Any]]:
    """(shape, numpy dtype) of every weight argument of a program, by name."""
    shapes: dict[str, tuple[Any, Any]] = {}
    for array in spec.arrays:
        if array.kind == "plain":
            shapes[array.name] = (array.shape, np.float32)
        else:
            shapes[array.name] = (packed_shape(array.shape, dtype, kernels), DTYPES[dtype])
    for name, value in constants(spec).items():
        shapes[name] = (value.shape, value.dtype)
    return shapes


def constants(spec: DecoderSpec) -> dict[str, NDArray[Any]]:
    """Arrays that come from the config: nothing is closed over by a program."""
    found: dict[str, NDArray[Any]] = {
        "inv_freq": np.asarray([rope.inv_freq for rope in spec.ropes], np.float32),
        "rope_scale": np.asarray([rope.scale for rope in spec.ropes], np.float32),
        "ropes": np.asarray(spec.ropes_of_layer, np.int32),
        "windows": np.asarray(spec.windows, np.int32),
    }
    if spec.rope_axes:
        found["rope_axes"] = np.eye(3, dtype=np.float32)[:, list(spec.rope_axes)]
    for name, value in spec.vision.constants.items() if spec.vision else ():
        whole = np.asarray(value)
        is_whole = np.issubdtype(whole.dtype, np.integer)
        found[name] = whole.astype(np.int32 if is_whole else np.float32)
    return found


def pack_weights(
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    dtype: str,
    kernels: str,
    *,
    is_quantised: bool = False,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, packed stack) of every weight. Raises CheckpointError naming the tensor.

    is_quantised: matrices that the checkpoint gives at their own width keep it where the kernels
    can read it, as `name.blob` and `name.table`; elsewhere their rounded values are packed.
    Cost: at most one stack in its packed form and one layer in f32 at a time.
    """
    if spec.prefixes:
        checkpoint = Renamed(checkpoint, spec.prefixes)
    check_tensors(checkpoint, spec)
    source = _Rounded(checkpoint) if is_quantised else checkpoint
    for array in spec.arrays:
        whole = _whole(checkpoint, array) if is_quantised and kernels == "cpu" else None
        if whole is not None:
            yield f"{array.name}.blob", whole.blob
            yield f"{array.name}.table", whole.table
            continue
        shape, kind = weight_shapes(spec, dtype, kernels)[array.name]
        out = np.empty(shape, kind)
        for layer, names in enumerate(array.sources):
            out[layer] = _layer(source, array, names, dtype, kernels)
        yield array.name, out
    yield from constants(spec).items()


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


class _Reader(Protocol):
    def read(self, name: str) -> NDArray[Any]: ...


class _Rounded:
    """Reads what is quantised as its rounded values."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, name: str) -> NDArray[Any]:
        tensor = self._checkpoint.read_quantised(name)
        return self._checkpoint.read(name) if tensor is None else tensor.values()


def _whole(checkpoint: Checkpoint, array: ArraySpec) -> PackedStack | None:
    """The stack at its own width; None where a part of it is dense or of no packable format."""
    if array.kind == "plain":
        return None
    stack = StackPacker(array.name, is_gated=array.kind == "gated")
    for names in array.sources:
        parts = []
        for name in names:
            tensor = checkpoint.read_quantised(name)
            if tensor is None or not is_packable(tensor):
                return None
            parts.append(tensor)
        stack.add(parts)
    return stack.finish()


def _layer(
    checkpoint: _Reader, array: ArraySpec, names: tuple[str, ...], dtype: str, kernels: str
) -> NDArray[Any]:
    parts = [checkpoint.read(name) for name in names]
    if array.kind == "plain":
        flat = np.concatenate([part.astype(np.float32).reshape(-1) for part in parts])
        return (flat + np.float32(array.offset)).reshape(array.shape[1:])
    # A convolution over patches without overlap is a linear of their values.
    wide = [part.astype(np.float32).reshape(len(part), -1) for part in parts]
    wide = [part.T for part in wide] if array.is_transposed else wide
    return pack_layer(wide, is_gated=array.kind == "gated", dtype=dtype, kernels=kernels)
