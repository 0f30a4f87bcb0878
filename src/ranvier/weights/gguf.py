"""Read GGUF files (versions 2 and 3): metadata and tensor table, bounds-checked, mapped.

Every count and length is checked against the file's size before it is used; a violation is a
CheckpointError that names file and field.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.core.limits import LIMITS
from ranvier.weights.dequantize import FORMATS, dequantize, unpack
from ranvier.weights.quantised import QuantTensor

__all__ = ["GgufFile"]

SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
DIMENSIONS_MAX = 4
ENTRIES_MAX = 100_000


@dataclass(frozen=True)
class _Tensor:
    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class GgufFile:
    """One mapped file: `metadata`, `names`, `shape(name)`, `read(name)`, `read_quantised(name)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size < 24:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are no GGUF file.")
        self._data = np.memmap(path, np.uint8, "r")
        self._view = memoryview(self._data.data)
        self._at = 0
        if bytes(self._view[:4]) != b"GGUF":
            raise self._error("magic", bytes(self._view[:4]), "b'GGUF'")
        self._at = 4
        version = self._scalar("<I", "version")
        if version not in (2, 3):
            raise self._error("version", version, "2 or 3")
        tensors = self._count("tensor count", ENTRIES_MAX)
        entries = self._count("metadata count", ENTRIES_MAX)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string("key")
            if key in self.metadata:
                raise self._error("metadata key", key, "unique")
            self.metadata[key] = self._value(key, 0)
        self._tensors = self._table(tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in numpy's order (slowest first)."""
        return self._tensors[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """Dequantise a tensor to f32."""
        tensor = self._tensors[name]
        return dequantize(self._raw(tensor), tensor.kind).reshape(tensor.shape)

    def read_quantised(self, name: str) -> QuantTensor | None:
        """A matrix at its own width; None where it is stored dense. Raises CheckpointError."""
        tensor = self._tensors[name]
        if len(tensor.shape) != 2:
            return None
        found = unpack(self._raw(tensor), tensor.kind, tensor.shape[0])
        if found is not None:
            found.check(f"{self.path}: {name}")
        return found

    def formats(self) -> set[str]:
        """Names of the quantised formats that the file holds."""
        kinds = {tensor.kind for tensor in self._tensors.values()}
        return {FORMATS[kind].name for kind in kinds if FORMATS[kind].unpack is not None}

    def _raw(self, tensor: _Tensor) -> NDArray[np.uint8]:
        return self._data[tensor.start : tensor.start + tensor.size]

    def _error(self, field: str, value: object, rule: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {field} is {value!r}, must be {rule}.")

    def _take(self, size: int, field: str) -> memoryview:
        left = len(self._view) - self._at
        if size > left:
            raise self._error(f"size of {field} at byte {self._at}", size, f"at most {left}")
        self._at += size
        return self._view[self._at - size : self._at]

    def _scalar(self, form: str, field: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), field))[0]

    def _count(self, field: str, limit: int) -> int:
        value = int(self._scalar("<Q", field))
        if value > limit:
            raise self._error(field, value, f"at most {limit}")
        return value

    def _string(self, field: str) -> str:
        size = int(self._scalar("<Q", field))
        return bytes(self._take(size, field)).decode("utf-8", "replace")

    def _value(self, field: str, depth: int, kind: int | None = None) -> Any:
        kind = self._scalar("<I", field) if kind is None else kind
        if kind in SCALARS:
            return self._scalar(SCALARS[kind], field)
        if kind == STRING:
            return self._string(field)
        if kind != ARRAY or depth:
            raise self._error(f"type of {field}", kind, "a scalar, a string or a flat array")
        inner = self._scalar("<I", field)
        count = self._count(f"length of {field}", LIMITS.gguf_strings_max)
        if inner in SCALARS:
            form = np.dtype(SCALARS[inner])
            raw = self._take(count * form.itemsize, field)
            return np.frombuffer(raw, form).tolist()
        return [self._value(field, depth + 1, inner) for _ in range(count)]

    def _table(self, count: int) -> dict[str, _Tensor]:
        entries = [self._entry() for _ in range(count)]
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or not 0 < align <= 2**20:
            raise self._error("general.alignment", align, "in [1, 2**20]")
        base = -(-self._at // align) * align
        tensors: dict[str, _Tensor] = {}
        for name, kind, shape, offset in entries:
            form = FORMATS.get(kind)
            if form is None:
                known = ", ".join(f.name for f in FORMATS.values())
                raise self._error(f"type of {name}", kind, f"one of {known}")
            elements = math.prod(shape)
            if shape[-1] % form.block:
                raise self._error(f"row of {name}", shape[-1], f"a multiple of {form.block}")
            size = elements // form.block * form.bytes
            if base + offset + size > len(self._view):
                raise self._error(f"end of {name}", base + offset + size, "within the file")
            if name in tensors:
                raise self._error("tensor name", name, "unique")
            tensors[name] = _Tensor(kind, shape, base + offset, size)
        self._check_overlap(tensors)
        return tensors

    def _check_overlap(self, tensors: dict[str, _Tensor]) -> None:
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                raise self._error(f"offset of {name}", tensor.start, f">= {end} (overlap)")
            end = tensor.start + tensor.size

    def _entry(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string("tensor name")
        dimensions = int(self._scalar("<I", name))
        if not 0 < dimensions <= DIMENSIONS_MAX:
            raise self._error(f"dimensions of {name}", dimensions, f"1 to {DIMENSIONS_MAX}")
        sizes = [int(self._scalar("<Q", name)) for _ in range(dimensions)]
        if math.prod(sizes) > 2**40 or 0 in sizes:
            raise self._error(f"shape of {name}", sizes, "non-zero and below 2**40 elements")
        return name, self._scalar("<I", name), tuple(reversed(sizes)), self._scalar("<Q", name)
