"""A checkpoint whose tensors are called otherwise: prefixes that changed between writers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantised import QuantTensor

__all__ = ["Renamed"]


class Renamed:
    """Reads a checkpoint by the new names; a name that has the new prefix already keeps it."""

    def __init__(self, checkpoint: Checkpoint, prefixes: Sequence[tuple[str, str]]) -> None:
        """`prefixes`: (prefix in the files, prefix to read by); the first that fits counts."""
        self._inner = checkpoint
        self.path = checkpoint.path
        self._names = {_renamed(name, prefixes): name for name in checkpoint.tensor_names()}

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
    def quantisation(self) -> str | None:
        return self._inner.quantisation

    def tokenizer_json(self) -> str:
        return self._inner.tokenizer_json()

    def tensor_names(self) -> list[str]:
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(self._names[name])

    def read(self, name: str) -> NDArray[Any]:
        return self._inner.read(self._names[name])

    def read_quantised(self, name: str) -> QuantTensor | None:
        return self._inner.read_quantised(self._names[name])


def _renamed(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    for old, new in prefixes:
        is_done = new.startswith(old) and name.startswith(new)
        if name.startswith(old) and not is_done:
            return new + name[len(old) :]
    return name
