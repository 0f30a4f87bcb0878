"""An adapter on its way to every rank: in parts of bounded size, put together at the other end."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights

__all__ = ["PART_BYTES", "AdapterPart", "ArrayForm", "Assembly", "parts"]

PART_BYTES = 4 * 2**20
TABLE = ""
"""The name under which the table travels."""


class ArrayForm(msgspec.Struct, array_like=True):
    """Shape and type of an array; `kind` is numpy's name of the type."""

    shape: tuple[int, ...]
    kind: str


class AdapterPart(msgspec.Struct, tag="adapter_part"):
    """Bytes of one array, from `offset` on. The first part of all has `forms` of every array."""

    digest: str
    rank: int
    name: str
    offset: int
    data: bytes
    forms: dict[str, ArrayForm] = {}


def parts(adapter: AdapterWeights) -> Iterator[AdapterPart]:
    """Everything of an adapter, in order."""
    arrays = {**adapter.arrays, TABLE: adapter.table}
    forms = {name: ArrayForm(array.shape, array.dtype.name) for name, array in arrays.items()}
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for offset in range(0, max(raw.size, 1), PART_BYTES):
            data = raw[offset : offset + PART_BYTES].tobytes()
            yield AdapterPart(adapter.digest, adapter.rank, name, offset, data, forms)
            forms = {}


class Assembly:
    """An adapter that is arriving. Raises ValueError for a part that does not fit."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}
        self._forms: dict[str, ArrayForm] = {}
        self._last: AdapterPart | None = None

    def take(self, part: AdapterPart) -> None:
        """Put a part where it belongs."""
        if part.forms:
            self._forms, self._arrays = part.forms, {}
        form = self._forms.get(part.name)
        if form is None:
            raise ValueError(f"a part of an unknown array {part.name!r}")
        size = int(np.prod(form.shape, dtype=np.int64)) * _kind(form).itemsize
        raw = self._arrays.setdefault(part.name, np.zeros(size, np.uint8))
        if part.offset < 0 or part.offset + len(part.data) > size:
            raise ValueError(f"a part of {part.name!r} beyond its {size} bytes")
        raw[part.offset : part.offset + len(part.data)] = np.frombuffer(part.data, np.uint8)
        self._last = part

    def adapter(self) -> AdapterWeights:
        """The whole."""
        if self._last is None or set(self._arrays) != set(self._forms):
            raise ValueError("an adapter is placed before it is whole")
        arrays = {
            name: raw.view(_kind(self._forms[name])).reshape(self._forms[name].shape)
            for name, raw in self._arrays.items()
        }
        table = arrays.pop(TABLE)
        return AdapterWeights(self._last.digest, self._last.rank, arrays, table)


def _kind(form: ArrayForm) -> np.dtype[np.generic]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, form.kind, form.kind))
