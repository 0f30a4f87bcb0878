"""Rows: a target's features of training sequences on disk, made once and read in batches.

Arrays are mapped .npy files; memory holds one batch. A folder is bound to what made it, and goes
on where it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError
from ranvier.train.examples import Example
from ranvier.train.loss import Batch

__all__ = ["FeatureSource", "RowShape", "Rows", "frequent_ids"]

PLAN, DONE = "rows.json", "done.txt"


class FeatureSource(Protocol):
    """build.eagle.features.FeatureModel, as far as it is used here."""

    def run(self, ids: Sequence[int]) -> Any: ...


@dataclass(frozen=True)
class RowShape:
    """Sizes of a folder of rows, and the fingerprint of what they are made of.

    `labels`: likely tokens kept a position; 0: the row's own next token is the label.
    """

    count: int
    tokens: int
    features: int
    labels: int
    source: str


def frequent_ids(examples: Sequence[Example], count: int, vocab: int) -> NDArray[np.int32]:
    """The `count` most frequent ids of the answers, ascending; the lowest ids fill up."""
    counts = np.zeros(vocab, np.int64)
    for example in examples:
        np.add.at(counts, np.asarray(example.ids[example.start :], np.int64), 1)
    order = np.lexsort((np.arange(vocab), -counts))
    return np.sort(order[:count]).astype(np.int32)


class Rows:
    """A folder of rows; `make` fills it, `batch` reads it."""

    def __init__(self, folder: Path, shape: RowShape) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.shape, self._folder = shape, folder
        plan = folder / PLAN
        if plan.is_file() and json.loads(plan.read_text()) != asdict(shape):
            raise ConfigError(
                f"{folder}: holds features of other data or another model.",
                hint="Give another --output, or remove the folder.",
            )
        mode = "r+" if plan.is_file() else "w+"
        size = (shape.count, shape.tokens)
        self._features = self._open("features", (*size, shape.features), np.uint16, mode)
        self._ids = self._open("ids", size, np.int32, mode)
        self._spans = self._open("spans", (shape.count, 2), np.int32, mode)
        self._label_ids = self._open("label_ids", (*size, shape.labels), np.int32, mode)
        self._label_probs = self._open("label_probs", (*size, shape.labels), np.float32, mode)
        plan.write_text(json.dumps(asdict(shape)))

    def __len__(self) -> int:
        return self.shape.count

    def make(
        self,
        examples: Sequence[Example],
        source: Callable[[], FeatureSource],
        progress: Callable[[int], object],
    ) -> None:
        """Run the target over what is not done yet; `source` is opened only if there is some."""
        assert len(examples) == self.shape.count
        done = self._done()
        progress(done)
        model = source() if done < self.shape.count else None
        for i in range(done, self.shape.count):
            assert model is not None
            example = examples[i]
            found, length = model.run(example.ids), len(example.ids)
            self._features[i, :length] = found.values.astype(ml_dtypes.bfloat16).view(np.uint16)
            self._ids[i, :length] = example.ids
            self._spans[i] = example.start, length
            self._label_ids[i, :length] = found.top_ids
            self._label_probs[i, :length] = found.top_probs
            (self._folder / DONE).write_text(str(i + 1))
            progress(1)

    def batch(self, picks: Sequence[int], head_of: NDArray[np.int32]) -> Batch:
        """Rows by index; `head_of` [V] is the head's id of each of the target's, or -1.

        The label of position i is what follows token i + 1, and a draft begins only where that
        token is part of the answer.
        """
        picks = sorted(picks)
        features = self._features[picks].view(ml_dtypes.bfloat16).astype(np.float32)
        ids, tokens = self._ids[picks], self.shape.tokens
        starts, lengths = self._spans[picks].T
        places = np.arange(tokens)[None, :]
        next_ids = _moved(ids, 1)
        if self.shape.labels:
            label_ids = _moved(self._label_ids[picks], 1)
            label_probs = _moved(self._label_probs[picks], 1)
        else:
            label_ids = _moved(ids, 2)[:, :, None]
            label_probs = np.ones_like(label_ids, np.float32)
        has_label = places + 2 < lengths[:, None] + bool(self.shape.labels)
        is_live = (places + 1 >= starts[:, None]) & has_label
        label_probs = np.where(has_label[:, :, None], label_probs, 0.0).astype(np.float32)
        fields: tuple[Any, ...] = (features, next_ids, head_of[label_ids], label_probs, is_live)
        return Batch(*fields)

    def _open(self, name: str, shape: tuple[int, ...], dtype: Any, mode: Any) -> NDArray[Any]:
        path = self._folder / f"{name}.npy"
        if mode == "r+":
            found: NDArray[Any] = np.lib.format.open_memmap(path, mode=mode)
            return found
        made: NDArray[Any] = np.lib.format.open_memmap(path, mode, dtype, shape)
        return made

    def _done(self) -> int:
        path = self._folder / DONE
        return int(path.read_text() or 0) if path.is_file() else 0


def _moved(x: NDArray[Any], count: int) -> NDArray[Any]:
    """Every position takes what lies `count` places after it; zeros come in at the end."""
    out = np.zeros_like(x)
    out[:, :-count] = x[:, count:]
    return out
