"""Placing: adapters on their way into slots of the device, a bounded while between two steps.

Knows runners by their protocol only; which adapter goes where is the scheduler's decision.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from ranvier.core.adapter import AdapterWeights
from ranvier.core.clock import Clock
from ranvier.core.errors import DeviceError, StateLost
from ranvier.core.step import Runner

__all__ = ["Placed", "Placing"]

SHARE = 0.25
"""Of a turn's usual time: so much longer a turn may take because of moves."""
PIECES = 4
"""In a turn, at most: a launch may return before the device has moved its piece."""
TURNS = 32


class Placed(NamedTuple):
    """An adapter is in its slot, or the device refused it; StateLost: every slot is empty."""

    adapter: str
    error: DeviceError | None


class _Move(NamedTuple):
    adapter: str
    pieces: Iterator[None]
    launched: int


class Placing:
    """Moves of one runner, in order."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        self._runner = runner
        self._clock = clock
        self._moves: deque[_Move] = deque()
        self._turns_s: deque[float] = deque(maxlen=TURNS)
        self._last_s = 0.0

    def begin(self, slot: int, weights: AdapterWeights, launched: int) -> None:
        """Move weights into a slot once `launched` steps, some of which may use it, are over."""
        pieces = self._runner.place_adapter(slot, weights)
        self._moves.append(_Move(weights.digest, pieces, launched))

    def turn(self, collected: int, *, is_busy: bool) -> list[Placed]:
        """Move for a while; the adapters that have arrived. Everything, unless sequences run."""
        start_s, arrived = self._clock.now_s(), list[Placed]()
        if is_busy:
            self._turns_s.append(start_s - self._last_s)
        self._last_s = start_s
        for count in itertools.count(1):
            if not self._moves or self._moves[0].launched > collected:
                break
            arrived += self._move()
            spent_s = self._clock.now_s() - start_s
            if is_busy and (count >= PIECES or spent_s >= SHARE * median(self._turns_s)):
                break
        return arrived

    def clear(self) -> None:
        """Give up what is under way: the device has lost its state."""
        self._moves.clear()

    def _move(self) -> list[Placed]:
        """One piece of the first move; the adapter, when that was the end."""
        move, error = self._moves[0], None
        try:
            next(move.pieces)
            return []
        except StopIteration:
            pass
        except DeviceError as fault:
            error = fault
        self._moves.popleft()
        if isinstance(error, StateLost):
            self.clear()
        return [Placed(move.adapter, error)]
