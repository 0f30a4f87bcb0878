"""Compare tokens and logits with a reference's, by NxD Inference's modes and tolerances.

Pure numpy. Logits are those of each position after the reference's own prefix, so one divergence
does not hide what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError

__all__ = [
    "DIVERGENCE_TOLERANCE",
    "DRAFT_TOLERANCES",
    "TOLERANCES",
    "Divergence",
    "LogitMatch",
    "TokenMatch",
    "Tolerance",
    "ToleranceResult",
    "match_logits",
    "match_tokens",
    "parse_tolerances",
]

DIVERGENCE_TOLERANCE = 0.001
"""A different token passes when the reference's logits of both are this near."""


@dataclass(frozen=True)
class Tolerance:
    """Bound on the reference's `top` largest logits (None: all) of a position.

    Allowed error: atol + rtol x the largest absolute logit among them.
    """

    top: int | None
    atol: float
    rtol: float

    @property
    def name(self) -> str:
        return "all" if self.top is None else f"top-{self.top}"


TOLERANCES = (
    Tolerance(5, 1e-5, 0.01),
    Tolerance(50, 1e-5, 0.02),
    Tolerance(1000, 1e-5, 0.03),
    Tolerance(None, 1e-5, 0.05),
)
"""NxD Inference 0.9's map of check_accuracy_logits."""
DRAFT_TOLERANCES = (Tolerance(2, 1e-5, 0.01),)
"""Drafts: the two largest logits of each step, up to the first divergence."""


@dataclass(frozen=True)
class Divergence:
    """A position at which the argmax differs; `difference` is in the reference's logits."""

    position: int
    expected: int
    found: int
    difference: float
    is_allowed: bool


@dataclass(frozen=True)
class TokenMatch:
    """Greedy tokens against the reference's."""

    count: int
    matched: int
    first: tuple[int, int, int] | None
    """(position, expected id, found id) of the first that differs; found -1: none came."""

    @property
    def passed(self) -> bool:
        return self.first is None


@dataclass(frozen=True)
class ToleranceResult:
    """The worst position of one tolerance, by its share of what is allowed."""

    tolerance: Tolerance
    position: int
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class LogitMatch:
    """Logits against the reference's. `errors` holds the largest error of each position."""

    results: tuple[ToleranceResult, ...]
    errors: tuple[float, ...]
    divergences: tuple[Divergence, ...]

    @property
    def first_divergence(self) -> int | None:
        return self.divergences[0].position if self.divergences else None

    @property
    def passed(self) -> bool:
        return all(r.passed for r in self.results) and all(d.is_allowed for d in self.divergences)


def match_tokens(expected: Sequence[int], found: Sequence[int]) -> TokenMatch:
    """Compare one by one up to the first that differs."""
    for position, token in enumerate(expected):
        got = found[position] if position < len(found) else -1
        if got != token:
            return TokenMatch(len(expected), position, (position, token, got))
    return TokenMatch(len(expected), len(expected), None)


def match_logits(
    expected_NV: NDArray[np.float32],
    found_NV: NDArray[np.float32],
    *,
    tolerances: Sequence[Tolerance] = TOLERANCES,
    divergence_tolerance: float = DIVERGENCE_TOLERANCE,
    is_draft: bool = False,
) -> LogitMatch:
    """Compare logits [N, V] position by position. NaN or infinity anywhere is beyond every bound.

    A draft is compared up to its first divergence, which is no fault of its own.
    """
    if expected_NV.shape != found_NV.shape:
        raise ConfigError(f"The reference's logits are {expected_NV.shape}, ours {found_NV.shape}.")
    divergences = _divergences(expected_NV, found_NV, divergence_tolerance)
    if is_draft and divergences:
        stop = divergences[0].position
        expected_NV, found_NV, divergences = expected_NV[:stop], found_NV[:stop], []
    wrong_NV = np.abs(found_NV - expected_NV)
    wrong_NV = np.where(np.isfinite(found_NV), wrong_NV, np.inf)
    results = [_result(expected_NV, wrong_NV, each) for each in tolerances] if len(wrong_NV) else []
    errors = tuple(float(error) for error in wrong_NV.max(axis=1, initial=0.0))
    return LogitMatch(tuple(results), errors, tuple(divergences))


def parse_tolerances(value: Any) -> tuple[Tolerance, ...]:
    """Tolerances of {"5": [1e-5, 0.01], "all": [1e-5, 0.05]}. Raises ConfigError."""
    try:
        table = [
            Tolerance(None if key in ("all", "null") else int(key), float(pair[0]), float(pair[1]))
            for key, pair in value.items()
        ]
        is_sound = bool(table) and all(
            (t.top is None or t.top > 0) and t.atol >= 0 and t.rtol >= 0 for t in table
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        is_sound = False
    if not is_sound:
        raise ConfigError(
            f"The tolerance map {value!r} is not usable.",
            hint='Give {"5": [1e-5, 0.01], "all": [1e-5, 0.05]}: top k to [atol, rtol].',
        )
    return tuple(table)


def _divergences(
    expected_NV: NDArray[np.float32], found_NV: NDArray[np.float32], tolerance: float
) -> list[Divergence]:
    best_N = expected_NV.argmax(axis=1)
    ours_N = np.where(np.isfinite(found_NV), found_NV, -np.inf).argmax(axis=1)
    found = []
    for position in np.flatnonzero(best_N != ours_N):
        row, best, ours = expected_NV[position], int(best_N[position]), int(ours_N[position])
        gap = float(row[best] - row[ours])
        found.append(Divergence(int(position), best, ours, gap, gap <= tolerance))
    return found


def _result(
    expected_NV: NDArray[np.float32], wrong_NV: NDArray[np.float32], tolerance: Tolerance
) -> ToleranceResult:
    vocab = expected_NV.shape[1]
    if tolerance.top is None or tolerance.top >= vocab:
        error_N, largest_N = wrong_NV.max(axis=1), np.abs(expected_NV).max(axis=1)
    else:
        top_NK = np.argpartition(expected_NV, vocab - tolerance.top, axis=1)[:, -tolerance.top :]
        error_N = np.take_along_axis(wrong_NV, top_NK, axis=1).max(axis=1)
        largest_N = np.abs(np.take_along_axis(expected_NV, top_NK, axis=1)).max(axis=1)
    allowed_N = tolerance.atol + tolerance.rtol * largest_N
    at = int(np.argmax(error_N / allowed_N))
    return ToleranceResult(tolerance, at, float(error_N[at]), float(allowed_N[at]))
