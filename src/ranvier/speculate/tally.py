"""Tally: what guessing yielded for one sequence, as its events tell it, by vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Level", "SpecDecodeMetrics", "Tally"]

Level = Literal["none", "summary", "detailed"]


@dataclass(frozen=True, slots=True)
class SpecDecodeMetrics:
    """vLLM 0.32's figures of one request. A step here is one verification of guesses.

    `acceptance_histogram[j]` counts the steps of which exactly j guesses stood, j up to
    `num_spec_tokens`, the most guessed a step. `mean_acceptance_length` is 1 + accepted / steps.
    """

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int
    per_step_accepted: list[int]
    per_step_drafted: list[int]

    def to_dict(self, level: Level = "detailed") -> dict[str, Any]:
        """The fields by name; the arrays of every step only where the level is detailed."""
        names = [name for name in self.__slots__ if level == "detailed" or "per_step" not in name]
        return {name: getattr(self, name) for name in names}


class Tally:
    """The verifications of one sequence in order.

    Each adds to the counts that the events of its step bring, of which there is at least one.
    """

    def __init__(self) -> None:
        self._seen = 0, 0, 0
        self._accepted: list[int] = []
        self._drafted: list[int] = []

    def take(self, guesses: tuple[int, int, int]) -> None:
        """Take Event.guesses of the next event."""
        if guesses[0] > self._seen[0]:
            self._drafted.append(guesses[1] - self._seen[1])
            self._accepted.append(guesses[2] - self._seen[2])
            self._seen = guesses

    def metrics(self, count: int) -> SpecDecodeMetrics:
        """The figures so far; `count`: the most tokens guessed a step."""
        return _metrics(self._accepted, self._drafted, count)

    @staticmethod
    def total(tallies: Iterable[Tally], count: int) -> SpecDecodeMetrics:
        """Of several sequences, one after the other."""
        both = [(own._accepted, own._drafted) for own in tallies]
        accepted = [one for own, _ in both for one in own]
        return _metrics(accepted, [one for _, own in both for one in own], count)


def _metrics(accepted: list[int], drafted: list[int], count: int) -> SpecDecodeMetrics:
    steps, stood, guessed = len(accepted), sum(accepted), sum(drafted)
    return SpecDecodeMetrics(
        1 + stood / max(steps, 1), stood / max(guessed, 1),
        [accepted.count(j) for j in range(count + 1)],
        steps, stood, guessed, count, list(accepted), list(drafted),
    )  # fmt: skip
