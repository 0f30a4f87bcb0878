"""Choose bucket sizes from the lengths that occur: the least expected cost for a program count.

Pure arithmetic on the host, without jax. Source: the exact dynamic program over candidate sizes
E(j, K) = min over i < j of E(i, K - 1) + (P_j - P_i) c(l_j), P the share of lengths up to l_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError

__all__ = ["Choice", "Cost", "Lengths", "choose_buckets", "linear", "log_normal"]

CANDIDATES_MAX = 512
TAIL_SHARE = 1e-6
"""Weight given to the largest size, so that every length is covered and none costs nothing."""

Cost = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution: ascending lengths from 1 and how often each occurs."""

    values: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Lengths:
        """From observed lengths, one each. Raises ConfigError for none, or one below 1."""
        found = np.asarray(list(lengths))
        if not found.size or found.dtype.kind != "i" or found.min() < 1:
            raise ConfigError("Lengths must be positive integers, at least one of them.")
        values, counts = np.unique(found, return_counts=True)
        return cls(tuple(values.tolist()), tuple(counts.astype(float).tolist()))


@dataclass(frozen=True, slots=True)
class Choice:
    """Chosen sizes, ascending, with what they cost."""

    sizes: tuple[int, ...]
    cost: float
    """Expected cost of one draw, each at its bucket's size."""
    cost_exact: float
    """Expected cost of one draw if every length had its own bucket."""

    @property
    def padding(self) -> float:
        """Expected cost beyond the exact one, as a share of it: 0.25 is a quarter more."""
        return self.cost / self.cost_exact - 1 if self.cost_exact else 0.0


def linear(size: int) -> float:
    """A cost in proportion to the size."""
    return float(size)


def log_normal(mean: float, sigma: float, limit: int, *, tail: float = 0.02) -> Lengths:
    """Lengths 1 .. limit: log-normal of that mean, and a share `tail` spread evenly over the log.

    What lies beyond `limit` counts as `limit`. The tail keeps a rare long request from landing in
    a bucket many times its size.
    """
    centre = math.log(mean) - sigma**2 / 2
    step = max(limit // 2048, 1)
    values = sorted({*range(step, limit, step), limit})
    spread = max(math.log(limit), 1e-9)
    shares = [
        (1 - tail) * 0.5 * (1 + math.erf((math.log(v) - centre) / (sigma * math.sqrt(2))))
        + tail * math.log(v) / spread
        for v in values
    ]
    shares[-1] = 1.0
    weights = np.diff(np.asarray([0.0, *shares]))
    return Lengths(tuple(values), tuple(weights.tolist()))


def choose_buckets(
    lengths: Lengths, cost: Cost, limit: int, budget: int, *, tile: int = 1
) -> list[Choice]:
    """The best sets of 1, 2, ... `budget` sizes, in that order.

    Sizes are multiples of `tile`, and `limit` itself, which every set holds. `cost` must not fall
    with the size. Lengths above `limit` count as `limit` (they are cut into pieces).
    Raises ConfigError for a budget below 1. Cost: O(budget n^2), n <= 512 candidates.
    """
    if budget < 1:
        raise ConfigError(f"The bucket budget must be at least 1, is {budget}.")
    sizes = _candidates(limit, tile, lengths)
    costs = np.asarray([cost(int(size)) for size in sizes], float)
    values = np.minimum(np.asarray(lengths.values), limit)
    weights = np.asarray(lengths.weights, float) / sum(lengths.weights)
    mass = np.bincount(np.searchsorted(sizes, values), weights, len(sizes))
    mass[-1] += TAIL_SHARE
    exact = float(np.dot(weights, [cost(int(value)) for value in values]))
    shares = np.concatenate([[0.0], np.cumsum(mass)])
    best, picks = _solve(shares, costs, min(budget, len(sizes)))
    return [
        Choice(tuple(int(sizes[j]) for j in chosen), float(total), exact)
        for total, chosen in zip(best, picks, strict=True)
    ]


def _candidates(limit: int, tile: int, lengths: Lengths) -> NDArray[np.int64]:
    """Ascending sizes: at most CANDIDATES_MAX, finest where lengths are frequent."""
    values = np.minimum(np.asarray(lengths.values), limit)
    rounded = np.unique(np.minimum(-(-values // tile) * tile, limit))
    if len(rounded) > CANDIDATES_MAX - 1:
        at = np.linspace(0, len(rounded) - 1, CANDIDATES_MAX - 1).round().astype(int)
        rounded = rounded[at]
    return np.unique(np.concatenate([rounded, [limit]]))


def _solve(
    shares: NDArray[np.float64], costs: NDArray[np.float64], budget: int
) -> tuple[list[float], list[list[int]]]:
    """Totals and chosen indices for each count of sizes; the last size is always chosen."""
    count = len(costs)
    # step[i, j]: lengths in (i, j] of the candidates, counted from 0 for none, at cost of j.
    step = (shares[None, 1:] - shares[:-1, None]) * costs[None, :]
    step[np.tril_indices(count, -1)] = np.inf
    total = step[0]
    parents: list[NDArray[np.int64]] = []
    totals, picks = [float(total[-1])], [[count - 1]]
    for used in range(2, budget + 1):
        # The previous size is i - 1, the next one j >= i.
        options = np.full((count, count), np.inf)
        options[1:] = total[:-1, None] + step[1:]
        parents.append(options.argmin(0) - 1)
        total = options.min(0)
        totals.append(float(total[-1]))
        picks.append(_trace(parents, used, count - 1))
    return totals, picks


def _trace(parents: list[NDArray[np.int64]], used: int, last: int) -> list[int]:
    chosen = [last]
    for level in range(used - 2, -1, -1):
        chosen.append(int(parents[level][chosen[-1]]))
    return chosen[::-1]
