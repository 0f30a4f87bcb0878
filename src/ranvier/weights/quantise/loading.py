"""A checkpoint that is quantised while it is read: `--quantization` on dense weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantise.selection import module_of, select
from ranvier.weights.quantised import QuantTensor

__all__ = ["QuantisingCheckpoint"]


class QuantisingCheckpoint:
    """The tensors of `inner`, the linears in `scheme`, all but the modules that `ignore` names.

    What `inner` holds quantised already is widened and rounded again.
    """

    def __init__(self, inner: Checkpoint, scheme: Scheme, ignore: Sequence[str] = ()) -> None:
        self.path: Path = inner.path
        self._inner = inner
        self._scheme = scheme
        self._ignore = tuple(ignore)

    @property
    def config(self) -> dict[str, Any]:
        return self._inner.config

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        return self._inner.tokenizer_config

    @property
    def generation_config(self) -> dict[str, Any]:
        return self._inner.generation_config

    @property
    def revision(self) -> str:
        return self._inner.revision

    @property
    def quantisation(self) -> str:
        """The scheme and the modules left out, on top of what the checkpoint holds."""
        kept = f" but {', '.join(sorted(self._ignore))}" if self._ignore else ""
        source = f" of {self._inner.quantisation}" if self._inner.quantisation else ""
        return f"{self._scheme.name}{kept}{source}"

    def tokenizer_json(self) -> str:
        return self._inner.tokenizer_json()

    def tensor_names(self) -> list[str]:
        return self._inner.tensor_names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def read(self, name: str) -> NDArray[Any]:
        """Dense values: of the codes, where the scheme has the matrix."""
        found = self.read_quantised(name) if name in self._schemes else None
        return self._inner.read(name) if found is None else found.values()

    def read_quantised(self, name: str) -> QuantTensor | None:
        """A matrix in the scheme; what the scheme leaves out as `inner` stores it."""
        scheme = self._schemes.get(name)
        if scheme is None:
            return self._inner.read_quantised(name)
        matrix = np.asarray(self._inner.read(name), np.float32)
        return quantise(matrix, scheme, f"{self.path}: {module_of(name)}")

    @cached_property
    def _schemes(self) -> dict[str, Scheme]:
        return select(self.tensor_names(), self._scheme, self._ignore, with_head=True)
