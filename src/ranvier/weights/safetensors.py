"""Read safetensors files: bounds-checked, mapped, no copies.

The format: 8 bytes of little-endian header length, a JSON header, raw tensors. Everything is
checked before a tensor is touched; a violation is a CheckpointError that names file and field.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.core.limits import LIMITS

__all__ = ["SafetensorsFile"]

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Tensor:
    dtype: Any
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One mapped file: `names`, `shape(name)`, `read(name)`.

    `content` are the bytes of a file that was read already, since others may change it: a mapped
    file that is made shorter ends the process that looks at it.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = path
        size = path.stat().st_size if content is None else len(content)
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > min(size - 8, LIMITS.header_json_bytes_max):
                raise self._error("header length", header_size, f"at most {max(size - 8, 0)}")
            header = file.read(header_size)
        self._tensors = self._parse(header, size - 8 - header_size)
        offset = 8 + header_size
        self._data: NDArray[np.uint8] = np.zeros(0, np.uint8)
        if content is not None:
            self._data = np.frombuffer(content, np.uint8)[offset:]
        elif offset < size:
            self._data = np.memmap(path, np.uint8, "r", offset=offset)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> NDArray[Any]:
        """A view of the mapped file in the stored dtype."""
        tensor = self._tensors[name]
        raw: NDArray[Any] = self._data[tensor.start : tensor.end].view(tensor.dtype)
        return raw.reshape(tensor.shape)

    def _error(self, field: str, value: object, rule: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {field} is {value!r}, must be {rule}.")

    def _parse(self, header: bytes, data_bytes: int) -> dict[str, _Tensor]:
        try:
            fields = json.loads(header)
        except (ValueError, RecursionError):
            raise self._error("header", header[:40], "JSON") from None
        if not isinstance(fields, dict):
            raise self._error("header", type(fields).__name__, "a JSON object")
        fields.pop("__metadata__", None)
        tensors = {name: self._tensor(name, entry, data_bytes) for name, entry in fields.items()}
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                raise self._error(f"data_offsets of {name}", tensor.start, f">= {end} (overlap)")
            end = tensor.end
        return tensors

    def _tensor(self, name: str, entry: Any, data_bytes: int) -> _Tensor:
        if not isinstance(entry, dict):
            raise self._error(name, entry, "an object")
        dtype = DTYPES.get(str(entry.get("dtype")))
        if dtype is None:
            raise self._error(f"dtype of {name}", entry.get("dtype"), f"one of {', '.join(DTYPES)}")
        shape = entry.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise self._error(f"shape of {name}", shape, "a list of sizes")
        offsets = entry.get("data_offsets")
        is_list = isinstance(offsets, list)
        if not is_list or [type(n) for n in offsets or ()] != [int, int]:
            raise self._error(f"data_offsets of {name}", offsets, "two integers")
        start, end = offsets or (0, 0)
        if not 0 <= start <= end <= data_bytes:
            raise self._error(f"data_offsets of {name}", offsets, f"within 0..{data_bytes}")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if end - start != size:
            raise self._error(f"size of {name}", end - start, f"{size} bytes for its shape")
        return _Tensor(dtype, tuple(shape), start, end)
