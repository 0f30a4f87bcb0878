"""Runs: which neighbours along an axis of a tensor a rank takes, and where it has zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Run", "Runs", "take"]


@dataclass(frozen=True)
class Run:
    """`count` neighbours from `start` on; start -1: as many zeros."""

    start: int
    count: int


Runs = tuple[Run, ...]


def take(array: NDArray[Any], runs: Runs, axis: int) -> NDArray[Any]:
    """The runs of an array along an axis, one after the other; a view where it is a single one."""
    parts = [_one(array, run, axis) for run in runs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _one(array: NDArray[Any], run: Run, axis: int) -> NDArray[Any]:
    if run.start < 0:
        shape = list(array.shape)
        shape[axis] = run.count
        return np.zeros(shape, array.dtype)
    index = slice(run.start, run.start + run.count)
    return array[index] if axis == 0 else array[:, index]
