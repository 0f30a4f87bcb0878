"""Uniform numbers from (seed, position): counter-based, so a batch never changes a draw.

Source: the splitmix64 finaliser (Steele, Lea, Flood 2014) over seed and position. The device never
draws; it receives these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["derive_seed", "uniform", "uniforms"]

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, position: int) -> float:
    """One number in [0, 1) with 24 bits, exact in f32."""
    bits = _mix((_mix((seed & MASK) ^ GOLDEN) + (position + 1) * GOLDEN) & MASK)
    return (bits >> 40) * 2.0**-24


def uniforms(seeds: list[int], positions: list[int]) -> NDArray[np.float32]:
    """uniform() of each pair."""
    pairs = zip(seeds, positions, strict=True)
    return np.fromiter((uniform(s, p) for s, p in pairs), np.float32, len(seeds))


def derive_seed(seed: int, index: int) -> int:
    """The seed of sequence `index` of a request; index 0 keeps the request's own."""
    return seed if index == 0 else _mix((seed & MASK) + index * GOLDEN & MASK)
