"""How many tokens to guess in the next step: what gives the most tokens a millisecond.

Knows costs that were measured and guesses that stood, nothing of devices, clocks or methods. A step
that only decodes costs what curves say: one for each count of drafts that its program makes, over
the tokens it takes. Before anything is guessed the plain step is measured at about that size.

What is not known is tried, and what looks bad is tried again later: a measurement that something
else on the machine disturbed is no verdict. What trying costs is bounded by a share of all time.
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
SETTLED = 3
"""A cost counts once it was measured so often; the least of so many first ones is taken."""
TRIAL_SHARE, TRIAL_MS = 0.015, 40.0
"""What trials may take of the time of all steps, and beside it."""
PATIENCE, PATIENCE_MAX = 512, 2**14
"""Steps of one kind before those of the other are measured anew; plain ones, each time that nothing
came of it, twice as many."""
GAIN = 1.05
"""To guess, or another count, the policy wants so many times the rate of what it does; to stop it
is enough that plain steps are faster."""
PRIOR, PRIOR_TRIES = 0.65, 6.0
"""Share of guesses that stand before any was made, and how many tries that counts for: a few misses
in a row say little, and what they end is not tried again soon."""
MEMORY, MEMORY_OVERALL, DRIFT = 0.97, 0.995, 0.9995
"""What stays of a count at the next try, of that of all sequences, and at a step without a try."""


class Acceptance:
    """The share of one sequence's guesses that stand, the latest weighing most.

    `overall` is that of all sequences: what a new one is believed to be like.
    """

    def __init__(self, overall: Acceptance | None = None) -> None:
        self._overall = overall
        self._memory = MEMORY_OVERALL if overall is None else MEMORY
        self._stood = self._tried = 0.0

    @property
    def rate(self) -> float:
        prior = PRIOR if self._overall is None else self._overall.rate
        return (self._stood + prior * PRIOR_TRIES) / (self._tried + PRIOR_TRIES)

    @property
    def hope(self) -> float:
        """What the rate may well be: a deviation above it, less the more was tried."""
        rate, tried = self.rate, self._tried + PRIOR_TRIES
        tried += 0.0 if self._overall is None else self._overall._tried
        return min(rate + math.sqrt(rate * (1 - rate) / tried), 0.99)

    def add(self, stood: int, guessed: int) -> None:
        """Of `guessed` tokens the first `stood` did; behind the first that fell nothing counts."""
        self._stood = self._stood * self._memory + stood
        self._tried = self._tried * self._memory + min(stood + 1, guessed)
        if self._overall is not None:
            self._overall.add(stood, guessed)

    def fade(self) -> None:
        """Forget a little: a step passed without a guess, and texts change."""
        self._stood, self._tried = self._stood * DRIFT, self._tried * DRIFT

    def expected(self, count: int) -> float:
        """How many of `count` guesses will stand."""
        return _expected(self.rate, count)


class CostCurve:
    """Milliseconds of a step over the tokens it takes: averages, straight lines between them.

    Sizes count as four to an octave, so that each is measured often.
    """

    def __init__(self) -> None:
        self._ms: dict[int, float] = {}
        self._times: dict[int, int] = {}
        self._sizes: list[int] = []

    def add(self, tokens: int, ms: float) -> None:
        fine = 1 << max(tokens.bit_length() - 3, 0)
        tokens = -(-tokens // fine) * fine
        times = self._times[tokens] = self._times.get(tokens, 0) + 1
        if times == 1:
            self._sizes.insert(bisect_left(self._sizes, tokens), tokens)
        known = self._ms.get(tokens, ms)
        weighed = known + WEIGHT * (min(ms, OUTLIER * known) - known)
        self._ms[tokens] = weighed if times > SETTLED else min(known, ms)

    def forget(self, above: int = 0, upto: float = math.inf) -> None:
        """Measure sizes above the one and up to the other anew."""
        self._sizes = [size for size in self._sizes if not above < size <= upto]
        self._ms = {size: self._ms[size] for size in self._sizes}
        self._times = {size: self._times[size] for size in self._sizes}

    def is_known_near(self, tokens: int) -> bool:
        """Whether something within a factor of two was measured."""
        return bool(self._near(tokens))

    def is_settled_near(self, tokens: int) -> bool:
        """Whether what is near was measured often enough to be believed."""
        return sum(self._times[size] for size in self._near(tokens)) >= SETTLED

    def reaches_down_to(self, tokens: int) -> bool:
        """Whether something at most twice as large was measured, so that a crowd's steps are no
        verdict on those of one alone."""
        return bool(self._sizes) and self._sizes[0] <= 2 * tokens

    @property
    def is_settled(self) -> bool:
        """Whether the whole was."""
        return sum(self._times.values()) >= SETTLED

    def _near(self, tokens: int) -> list[int]:
        return [size for size in self._sizes if tokens <= 2 * size and size <= 2 * tokens]

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
        self._is_trial = self._is_spent = False
        self._base = 0
        self._ms = self._trials_ms = 0.0
        self._same, self._patience = 0, PATIENCE

    def measured(self, draft: int, tokens: int, ms: float) -> None:
        """A step that only decoded took `ms`; its program made `draft` drafts a sequence."""
        self._curves[draft if self._has_drafter else 0].add(tokens, ms)
        self._ms += ms
        if self._is_trial and self._base:
            self._trials_ms += max(ms - self._least(0, self._base), 0.0)

    def went_back(self, tokens: int) -> None:
        """So many tokens are computed once more, for the drafter's sake."""
        base = max(self._base, 1)
        self._trials_ms += tokens * self._least(0, base) / max(base, FEW)

    def choose(self, sequences: Sequence[Acceptance], rooms: Sequence[int]) -> int:
        """The count for a step of these sequences, of which each has room for so many drafts."""
        was_trial, self._is_trial = self._is_trial, False
        self._base = len(sequences)
        if not self._base:
            return 0
        self._look_again()
        if not self._curves[0].is_known_near(self._base):
            return 0
        can_try = self._spare_ms >= (0.0 if was_trial else TRIAL_MS / 2)
        self._is_spent |= self._base > FEW and not can_try
        best, self._is_trial = self._best([s.rate for s in sequences], rooms, can_try=can_try)
        if not best and can_try:
            best, _ = self._best([s.hope for s in sequences], rooms, can_try=True)
            self._is_trial = best > 0
        self._same = 0 if (best == 0) != (self._now == 0) else self._same
        self._now = best
        if self._now and not self._is_trial:
            self._patience = PATIENCE
        return self._now

    def _best(
        self, shares: Sequence[float], rooms: Sequence[int], *, can_try: bool
    ) -> tuple[int, bool]:
        """The count of the best rate, if that is worth a change; and whether it is a trial."""
        rates = {0: self._base / self._least(0, self._base)}
        smaller, trial = 0, -1
        for count in self._counts:
            drafts = [min(count, room) for room in rooms]
            tokens = self._base + sum(drafts)
            if tokens == self._base:
                continue
            cost = self._cost(count, tokens)
            if self._is_settled(count, tokens):
                smaller = count
            elif trial < 0 and can_try:
                trial, cost = count, self._least(smaller, tokens)
            elif not self._has_drafter:
                continue
            rates[count] = (self._base + sum(map(_expected, shares, drafts))) / cost
        now, best = rates.get(self._now, 0.0), max(rates, key=lambda count: rates[count])
        if rates[best] <= GAIN * now:
            best = 0 if now < rates[0] else self._now
        return best, best == trial

    @property
    def is_off(self) -> bool:
        """Whether the last choice was to guess nothing."""
        return self._now == 0

    @property
    def _spare_ms(self) -> float:
        """What trials may still take."""
        return TRIAL_MS + TRIAL_SHARE * self._ms - self._trials_ms

    def is_off_at(self, rows: int) -> bool:
        """Whether nothing is guessed, for more than a few rows, nor will be soon: guesses were
        tried at that size, or there was no time left to try."""
        if self._now or rows <= FEW or not self._curves[0].is_known_near(rows):
            return False
        return self._is_spent or any(
            self._cost(count, rows * (1 + count)) < math.inf for count in self._counts
        )

    def _look_again(self) -> None:
        """Forget what the other way costs, plain steps or guesses, when it was long not taken."""
        self._same += 1
        if self._now:
            if self._same >= PATIENCE:
                self._same = 0
                self._curves[0].forget(upto=self._base)
        elif self._same >= self._patience:
            self._same, self._patience = 0, min(2 * self._patience, PATIENCE_MAX)
            self._is_spent = False
            for count, curve in self._curves.items():
                if count or not self._has_drafter:
                    curve.forget(above=0 if count else self._base)

    def _is_settled(self, count: int, tokens: int) -> bool:
        if not self._has_drafter:
            return self._curves[0].is_settled_near(tokens)
        curve = self._curves[count]
        return curve.at(tokens) is not None and curve.reaches_down_to(tokens) and curve.is_settled

    def _least(self, count: int, tokens: int) -> float:
        """What a trial is taken to cost: as much as with fewer drafts, or as a plain step."""
        plain = self._cost(0, self._base)
        return max(plain, self._cost(count, tokens)) if count and self._has_drafter else plain

    def _cost(self, count: int, tokens: int) -> float:
        """What was measured of this count; without end where nothing was."""
        ms = self._curves[count if self._has_drafter else 0].at(tokens)
        return math.inf if ms is None else max(ms, 1e-6)


def _expected(rate: float, count: int) -> float:
    """Guesses that stand before the first that falls: a geometric sum."""
    return rate * (1 - rate**count) / (1 - rate) if rate < 1 else float(count)
