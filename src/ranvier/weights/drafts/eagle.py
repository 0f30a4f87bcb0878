"""EagleCheckpoint: a draft head's tensors under one set of names, whatever project wrote them.

What the head shares with its target is read from the target: the embedding, and the rows of the
target's head that a reduced vocabulary names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.checkpoint import Checkpoint, FolderCheckpoint
from ranvier.weights.quantised import QuantTensor

__all__ = ["EMBED", "HEAD", "EagleCheckpoint", "canonical_name"]

HEAD, EMBED = "lm_head.weight", "embed_tokens.weight"
SKIPPED = "rotary_emb.inv_freq"
"""A buffer that older tools saved; it follows from the config."""


def canonical_name(stored: str) -> str:
    """The name used here: no `model.`, and the one layer is layers.0, as in EAGLE's first kind."""
    name = stored.removeprefix("model.")
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


class EagleCheckpoint:
    """A head's folder beside its target, as build/pack.py reads a checkpoint.

    `head_name`: the target's tensor that gives logits.
    """

    def __init__(self, path: Path, target: Checkpoint, head_name: str) -> None:
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: a draft head is a folder with config.json and model.safetensors."
            )
        self.path = path
        self._folder = FolderCheckpoint(path)
        self._target, self._head_name = target, head_name
        self._stored: dict[str, str] = {}
        for stored in self._folder.tensor_names():
            name = canonical_name(stored)
            if name in self._stored:
                raise CheckpointError(
                    f"{path}: {stored!r} and {self._stored[name]!r} are the same tensor."
                )
            if not name.endswith(SKIPPED):
                self._stored[name] = stored

    @property
    def config(self) -> dict[str, Any]:
        return self._folder.config

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        return self._target.tokenizer_config

    @property
    def generation_config(self) -> dict[str, Any]:
        return self._target.generation_config

    def tokenizer_json(self) -> str:
        return self._target.tokenizer_json()

    @property
    def revision(self) -> str:
        """Fingerprint of the head's own files; the target has one of its own."""
        return self._folder.revision

    @property
    def quantisation(self) -> str | None:
        return self._folder.quantisation

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the folder holds, by the names used here."""
        return {name: self._folder.shape(stored) for name, stored in self._stored.items()}

    def own_names(self) -> dict[str, str]:
        """The name used here -> the stored one."""
        return dict(self._stored)

    def tensor_names(self) -> list[str]:
        """What can be read: the head's own, and its rows of the target's head."""
        return sorted({*self._stored, HEAD})

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._stored:
            return self._folder.shape(self._stored[name])
        return (len(self.ids()), self._target.shape(self._head_name)[1])

    def read(self, name: str) -> NDArray[Any]:
        """A tensor; the head that the folder lacks comes from the target."""
        if name in self._stored:
            return self._folder.read(self._stored[name])
        assert name == HEAD, name
        return self._target.read(self._head_name)[self.ids()]

    def read_quantised(self, name: str) -> QuantTensor | None:
        if name in self._stored:
            return self._folder.read_quantised(self._stored[name])
        return None

    def ids(self) -> NDArray[np.int32]:
        """The target's id of each id of the head. Raises CheckpointError."""
        vocab = self._target.shape(self._head_name)[0]
        if "d2t" not in self._stored:
            return np.arange(vocab, dtype=np.int32)
        offsets = self.read("d2t").astype(np.int64).reshape(-1)
        ids = offsets + np.arange(len(offsets))
        if not len(ids) or ids.min() < 0 or ids.max() >= vocab:
            raise CheckpointError(
                f"{self.path}: d2t gives ids from {ids.min(initial=0)} to {ids.max(initial=0)}; "
                f"the target {self._target.path} has {vocab}."
            )
        return ids.astype(np.int32)
