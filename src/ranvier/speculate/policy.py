"""How many tokens to guess in the next step: what gives the most tokens a millisecond.

Knows costs that were measured and guesses that stood, nothing of devices, clocks or methods. A step
that only decodes costs what curves say: one for each count of drafts that its program makes, over
the tokens it takes. Before anything is guessed the plain step is measured at about that size.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Acceptance", "CostCurve", "Policy"]

WEIGHT = 0.25
"""Of a new measurement in an average."""
OUTLIER = 3.0
"""A measurement counts for at most so many times the average: a page fault is no trend."""
REACH = 3
"""Sizes beyond so many times the largest measured one are unknown, but for a handful of tokens."""
FEW = 8
GAIN = 1.05
"""To change its mind the policy wants so many times the rate of what it does."""
PRIOR, PRIOR_TRIES = 0.65, 1.5
"""Share of guesses that stand before any was made, and how many tries that counts for."""
MEMORY, DRIFT = 0.97, 0.9995
"""What stays of a count at the next try, and at a step without one."""


class Acceptance:
    """The share of one sequence's guesses that stand, the latest weighing most.

    `overall` is that of all sequences: what a new one is believed to be like.
    """

    def __init__(self, overall: Acceptance | None = None) -> None:
        self._overall = overall
        self._stood = self._tried = 0.0

    @property
    def rate(self) -> float:
        prior = PRIOR if self._overall is None else self._overall.rate
        return (self._stood + prior * PRIOR_TRIES) / (self._tried + PRIOR_TRIES)

    def add(self, stood: int, guessed: int) -> None:
        """Of `guessed` tokens the first `stood` did; behind the first that fell nothing counts."""
        self._stood = self._stood * MEMORY + stood
        self._tried = self._tried * MEMORY + min(stood + 1, guessed)
        if self._overall is not None:
            self._overall.add(stood, guessed)

    def fade(self) -> None:
        """Forget a little: a step passed without a guess, and texts change."""
        self._stood, self._tried = self._stood * DRIFT, self._tried * DRIFT
        if self._overall is not None:
            self._overall.fade()

    def expected(self, count: int) -> float:
        """How many of `count` guesses will stand."""
        return _expected(self.rate, count)


class CostCurve:
    """Milliseconds of a step over the tokens it takes: averages, straight lines between them.

    Sizes count as four to an octave, so that each is measured often.
    """

    def __init__(self) -> None:
        self._ms: dict[int, float] = {}
        self._sizes: list[int] = []

    def add(self, tokens: int, ms: float) -> None:
        fine = 1 << max(tokens.bit_length() - 3, 0)
        tokens = -(-tokens // fine) * fine
        known = self._ms.get(tokens)
        if known is None:
            self._sizes.insert(bisect_left(self._sizes, tokens), tokens)
            known = ms
        self._ms[tokens] = known + WEIGHT * (min(ms, OUTLIER * known) - known)

    def is_known_near(self, tokens: int) -> bool:
        """Whether something within a factor of two was measured."""
        return any(tokens <= 2 * size and size <= 2 * tokens for size in self._sizes)

    def at(self, tokens: int) -> float | None:
        """Beyond what was measured the nearest two points go on; one alone goes on level.

        None: not known at all.
        """
        sizes, ms = self._sizes, self._ms
        if not sizes or tokens > max(REACH * sizes[-1], FEW):
            return None
        if len(sizes) == 1:
            return ms[sizes[0]]
        i = min(max(bisect_left(sizes, tokens), 1), len(sizes) - 1)
        low, high = sizes[i - 1], sizes[i]
        slope = (ms[high] - ms[low]) / (high - low)
        return max(ms[low] + slope * (tokens - low), min(ms.values()))


class Policy:
    """Chooses among `counts` > 0 of drafts a sequence, and none.

    `has_drafter`: drafting costs time on the device, in a program of its own for each count.
    """

    def __init__(self, counts: Sequence[int], *, has_drafter: bool) -> None:
        self._counts = tuple(counts)
        self._has_drafter = has_drafter
        self._curves = {k: CostCurve() for k in (0, *counts)}
        self._now = 0

    def measured(self, draft: int, tokens: int, ms: float) -> None:
        """A step that only decoded took `ms`; its program made `draft` drafts a sequence."""
        self._curves[draft if self._has_drafter else 0].add(tokens, ms)

    def choose(self, sequences: Sequence[Acceptance], rooms: Sequence[int]) -> int:
        """The count for a step of these sequences, of which each has room for so many drafts."""
        base = len(sequences)
        if not base or not self._curves[0].is_known_near(base):
            return 0
        shares = [acceptance.rate for acceptance in sequences]
        rates = {0: base / self._cost(0, base)}
        for count in self._counts:
            drafts = [min(count, room) for room in rooms]
            gain = sum(map(_expected, shares, drafts))
            cost = self._cost(count, base + sum(drafts)) if sum(drafts) else math.inf
            rates[count] = (base + gain) / cost
        best = max(rates, key=lambda count: rates[count])
        if rates[best] > GAIN * rates.get(self._now, 0.0):
            self._now = best
        return self._now

    @property
    def is_off(self) -> bool:
        """Whether the last choice was to guess nothing."""
        return self._now == 0

    def _cost(self, count: int, tokens: int) -> float:
        """What was measured of this count, else of the next smaller one; else without end."""
        smaller = [k for k in (0, *self._counts) if k <= count] if self._has_drafter else [0]
        found = (self._curves[k].at(tokens) for k in reversed(smaller))
        return max(next((ms for ms in found if ms is not None), math.inf), 1e-6)


def _expected(rate: float, count: int) -> float:
    """Guesses that stand before the first that falls: a geometric sum."""
    return rate * (1 - rate**count) / (1 - rate) if rate < 1 else float(count)
