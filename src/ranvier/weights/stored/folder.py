"""QuantisedTensors: the tensors of a quantised folder by the names of the dense model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.selection import is_layer_linear, module_of
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.stored.tensors import Stored, Tensors

__all__ = ["QuantisedTensors"]


class QuantisedTensors:
    """`raw` seen through a convention: each quantised module is one tensor, `<module>.weight`.

    Raises CheckpointError, on the first look, where config and tensors disagree.
    """

    def __init__(self, stored: Stored, raw: Tensors) -> None:
        self.name = stored.name
        self._stored = stored
        self._raw = raw

    def names(self) -> list[str]:
        hidden = {f"{m}.{suffix}" for m in self._modules for suffix in self._stored.suffixes}
        dense = {name for name in self._raw.names() if name not in hidden}
        return sorted(dense | {f"{module}.weight" for module in self._modules})

    def shape(self, name: str) -> tuple[int, ...]:
        if self._holds(name):
            return self._stored.shape(self._raw, module_of(name))
        return self._raw.shape(name)

    def read(self, name: str) -> NDArray[Any]:
        """Dense values; of what is quantised in f32."""
        found = self.read_quantised(name)
        return self._raw.read(name) if found is None else found.values()

    def read_quantised(self, name: str) -> QuantTensor | None:
        if not self._holds(name):
            if name not in self._raw.names():
                raise CheckpointError(f"The checkpoint has no tensor {name!r}.")
            return None
        found = self._stored.read(self._raw, module_of(name))
        found.check(module_of(name))
        return found

    def _holds(self, name: str) -> bool:
        return name.endswith(".weight") and module_of(name) in self._modules

    @cached_property
    def _modules(self) -> set[str]:
        markers = tuple(f".{marker}" for marker in self._stored.markers)
        names = self._raw.names()
        found = {name[: name.rindex(".")] for name in names if name.endswith(markers)}
        linears = {module_of(name) for name in names if is_layer_linear(name)}
        self._stored.check(sorted(found), sorted(linears - found))
        return found
