"""A checkpoint with some of its config replaced, or with another's tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from numpy.typing import NDArray

from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantised import QuantTensor

__all__ = ["OverriddenCheckpoint", "TextSource"]


class TextSource(Protocol):
    """What is read of a model that only lends its tokenizer."""

    @property
    def tokenizer_config(self) -> dict[str, Any]: ...
    def tokenizer_json(self) -> str: ...


class OverriddenCheckpoint:
    """The tensors of `inner`; its config with `changes` merged in; the text side of `text`."""

    def __init__(
        self, inner: Checkpoint, changes: dict[str, Any], text: TextSource | None = None
    ) -> None:
        self.path = inner.path
        self.config = _merged(inner.config, changes)
        self.generation_config = inner.generation_config
        self._inner = inner
        self._text = text or inner

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        return self._text.tokenizer_config

    @property
    def revision(self) -> str:
        """Of the inner checkpoint, and of the tokenizer when it is another's."""
        if self._text is self._inner:
            return self._inner.revision
        text = self.tokenizer_json() + json.dumps(self.tokenizer_config, sort_keys=True)
        return hashlib.sha256((self._inner.revision + text).encode()).hexdigest()

    def tokenizer_json(self) -> str:
        return self._text.tokenizer_json()

    def tensor_names(self) -> list[str]:
        return self._inner.tensor_names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def read(self, name: str) -> NDArray[Any]:
        return self._inner.read(name)

    def read_quantised(self, name: str) -> QuantTensor | None:
        return self._inner.read_quantised(name)

    @property
    def quantisation(self) -> str | None:
        return self._inner.quantisation


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; objects are merged key by key."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        is_tree = isinstance(inner, dict) and isinstance(value, dict)
        found[key] = _merged(inner, value) if is_tree and inner is not None else value
    return found
