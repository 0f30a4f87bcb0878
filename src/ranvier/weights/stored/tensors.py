"""What readers of quantised folders share: typed fields, checked tensors, packed numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.selection import matches
from ranvier.weights.quantised import QuantTensor

__all__ = [
    "Fields",
    "Stored",
    "Tensors",
    "check_names",
    "from_zeros",
    "is_named",
    "matrix",
    "refuse_zero_scales",
    "scales_of",
    "sizes_of",
    "unpack_bits",
]

Array = NDArray[Any]
Floats = NDArray[np.float32]


class Tensors(Protocol):
    """The raw tensors of a folder."""

    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> Array: ...


class Stored(Protocol):
    """A convention with its config: which modules it holds, and how to read one.

    `markers`: endings of tensors that only a quantised module has; `suffixes`: of all the tensors
    that are part of one and are not named as in a dense model; `ignored`: names of modules that the
    config leaves out.
    """

    @property
    def name(self) -> str: ...
    @property
    def markers(self) -> tuple[str, ...]: ...
    @property
    def suffixes(self) -> tuple[str, ...]: ...
    @property
    def ignored(self) -> tuple[str, ...]: ...
    def check(self, modules: Sequence[str], dense: Sequence[str]) -> None: ...
    def shape(self, tensors: Tensors, module: str) -> tuple[int, int]: ...
    def read(self, tensors: Tensors, module: str) -> QuantTensor: ...


@dataclass(frozen=True)
class Fields:
    """One JSON object of quantization_config; `where` is its path for messages."""

    values: Mapping[str, Any]
    where: str = "config.json: quantization_config"

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def inner(self, name: str) -> Fields:
        """An object in this one. Raises CheckpointError."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(value, f"{self.where}.{name}")

    def choice(self, name: str, known: Sequence[Any], default: Any = None) -> Any:
        """A value among the supported ones. Raises CheckpointError that lists them."""
        value = self.get(name, default)
        if isinstance(value, (dict, list)) or value not in known:
            raise self.error(name, f"one of {', '.join(map(str, known))}")
        return value

    def strings(self, name: str) -> list[str]:
        value = self.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "a list of names")
        return value

    def error(self, name: str, rule: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}.{name} is {self.values.get(name)!r}; supported: {rule}."
        )


def check_names(
    ignored: Sequence[str], modules: Sequence[str], dense: Sequence[str], where: str
) -> None:
    """Compare the modules left out with the tensors. Raises CheckpointError naming the module.

    A linear of the layers that is stored dense must be left out by name; one that is left out must
    not be stored quantised.
    """
    for module in modules:
        if any(is_named(pattern, module) for pattern in ignored):
            raise CheckpointError(f"{where} leaves {module} out, but it is stored quantised.")
    for module in dense:
        if not any(is_named(pattern, module) for pattern in ignored):
            raise CheckpointError(f"{module}: {where} says it is quantised; it is stored dense.")


def is_named(pattern: str, module: str) -> bool:
    """Whether a name of a config means a module, as `matches` says. Raises CheckpointError."""
    try:
        return matches(pattern, module)
    except re.error as error:
        raise CheckpointError(f"quantization_config: {pattern!r}: {error}.") from None


def scales_of(tensors: Tensors, name: str, shapes: Sequence[tuple[int, ...]]) -> Floats:
    """A tensor of scales in f32, finite and positive, of one of the shapes."""
    found = matrix(tensors, name, shapes).astype(np.float32)
    if not np.isfinite(found).all():
        raise CheckpointError(f"{name}: a scale is not finite.")
    if (found < 0).any():
        raise CheckpointError(f"{name}: a scale is negative.")
    return found


def sizes_of(tensors: Tensors, name: str) -> tuple[int, int]:
    """The two sizes of a matrix. Raises CheckpointError."""
    if name not in tensors.names():
        raise CheckpointError(f"{name}: missing.")
    shape = tensors.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{name}: its shape is {shape}, must be a matrix's.")
    return shape[0], shape[1]


def matrix(
    tensors: Tensors, name: str, shapes: Sequence[tuple[int, ...]], kinds: str = ""
) -> Array:
    """A tensor of one of the shapes and, where given, of one of the numpy kinds."""
    if name not in tensors.names():
        raise CheckpointError(f"{name}: missing.")
    found = tensors.read(name)
    if found.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise CheckpointError(f"{name}: its shape is {found.shape}, must be {wanted}.")
    if kinds and found.dtype.name not in kinds.split():
        raise CheckpointError(f"{name}: its type is {found.dtype.name}, must be {kinds}.")
    return found


def refuse_zero_scales(tensor: QuantTensor, name: str) -> None:
    """A scale of 0 is right only where the whole group is zero."""
    assert tensor.scales is not None
    if tensor.scales.all():
        return
    outputs, inputs = tensor.shape
    values = tensor.codes.reshape(outputs, inputs // tensor.group, tensor.group)
    zero: Any = tensor.zero if tensor.zeros is None else tensor.zeros[:, :, None]
    if tensor.kind == "fp8":
        values, zero = values & 0x7F, 0
    if ((values != zero).any(-1) & (tensor.scales == 0)).any():
        raise CheckpointError(f"{name}: a scale is zero where the codes are not.")


def unpack_bits(packed: Array, bits: int) -> NDArray[np.uint8]:
    """The unsigned numbers in the last axis of int32 words, low bits first."""
    words = np.ascontiguousarray(packed).view(np.uint32)
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    mask = np.uint32((1 << bits) - 1)
    parts = ((words[..., None] >> shifts) & mask).astype(np.uint8)
    return parts.reshape(*packed.shape[:-1], packed.shape[-1] * count)


def from_zeros(
    codes: NDArray[np.uint8], bits: int, scales: Floats, zeros: NDArray[np.integer[Any]] | int
) -> QuantTensor:
    """A tensor of unsigned codes [O, I] and unsigned zero points, one or [O, I / group]."""
    group = codes.shape[1] // scales.shape[1]
    if not isinstance(zeros, int) and (zeros == zeros.flat[0]).all():
        zeros = int(zeros.flat[0])
    if bits == 4:
        if isinstance(zeros, int):
            return QuantTensor(codes=codes, bits=4, group=group, scales=scales, zero=zeros)
        return QuantTensor(
            codes=codes, bits=4, group=group, scales=scales, zeros=zeros.astype(np.uint8)
        )
    signed = (codes ^ np.uint8(128)).view(np.int8)
    if isinstance(zeros, int):
        return QuantTensor(codes=signed, bits=8, group=group, scales=scales, zero=zeros - 128)
    offsets = scales * (128 - zeros.astype(np.float32))
    return QuantTensor(codes=signed, bits=8, group=group, scales=scales, offsets=offsets)
