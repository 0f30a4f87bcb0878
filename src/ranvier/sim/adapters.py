"""Adapters of the simulation: weights that are only a digest, and a loader that is slow or fails.

What a path holds is in a dictionary: its digest, or the error of reading it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ranvier.adapters.loading import Loaded
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import AdapterError

__all__ = ["SimulatedLoader", "simulated_weights"]


def simulated_weights(digest: str, pieces: int = 1) -> AdapterWeights:
    """Weights that a simulated runner takes in so many pieces."""
    return AdapterWeights(
        digest=digest,
        rank=1,
        arrays={"lora": np.zeros((1, pieces, 1), np.float32)},
        table=np.zeros((1, 1, 1, 3), np.int32),
    )


class SimulatedLoader:
    """A Loader whose loads end after up to `turns_max` calls of take, in any order."""

    def __init__(
        self, digests: Mapping[str, str], *, turns_max: int = 0, pieces: int = 1, seed: int = 0
    ) -> None:
        self.digests = digests
        self.reads = 0
        self.on_done: Callable[[], None] | None = None
        self._turns_max = turns_max
        self._pieces = pieces
        self._random = random.Random(seed)
        self._asked: list[tuple[int, Any, str]] = []

    def ask(self, key: Any, path: str, *, is_urgent: bool) -> None:
        self._asked.append((self._random.randint(0, self._turns_max), key, path))

    def take(self) -> list[Loaded]:
        """Loads whose time has come."""
        due = [(key, path) for turns, key, path in self._asked if turns <= 0]
        self._asked = [(turns - 1, key, path) for turns, key, path in self._asked if turns > 0]
        return [Loaded(key, self._read(path), 0.0) for key, path in due]

    def close(self) -> None: ...

    def _read(self, path: str) -> AdapterWeights | AdapterError:
        self.reads += 1
        digest = self.digests.get(path)
        if digest is None:
            return AdapterError(f"{path}: no such adapter.")
        return simulated_weights(digest, self._pieces)
