"""A short measurement of what this machine reads and computes."""

from __future__ import annotations

import time

import numpy as np

from ranvier.targets.system import Speed

__all__ = ["measure_speed"]

ARRAY_BYTES = 256 * 2**20
"""Larger than the last cache of most machines."""


def measure_speed(seconds: float = 0.3) -> Speed:
    """Read bandwidth of numpy's sum and the rate of its f32 matmul, each for about `seconds`.

    A sum runs on one thread: with several memory channels the machine can do more.
    """
    data = np.ones(ARRAY_BYTES // 4, np.float32)
    bandwidth = data.nbytes / _best(data.sum, seconds)
    square = np.ones((512, 512), np.float32)
    flops = 2 * 512**3 / _best(lambda: square @ square, seconds)
    return Speed(bandwidth, flops)


def _best(work: object, seconds: float) -> float:
    """The shortest of the runs that fit in `seconds`, the first one left out."""
    assert callable(work)
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
