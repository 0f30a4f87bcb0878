"""Speculation: which guesses the next step verifies, and how many the device is to make.

Guesses come from the history of a sequence (ngram) or from the device, with the last step's result.
The policy decides how many are worth it. None lies beyond the end of a context or of an output, so
that the last tokens are decoded plainly.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Protocol

from ranvier.core.config import SpeculationConfig
from ranvier.core.step import RunnerInfo
from ranvier.speculate.lookup import Lookup
from ranvier.speculate.policy import Acceptance, Policy

__all__ = ["Sequence", "Speculation"]

FEW, REST = 4, 4
"""Beyond so many sequences, and while nothing is guessed, only every so many steps look again."""
LAG_MAX = 128
"""Tokens of a step that may be computed again for the drafter's sake, shared by its sequences: one
that the drafter is further behind of goes without guesses."""


class Sequence(Protocol):
    """What is read and set of schedule.sequence.Sequence."""

    tokens: list[int]
    planned: int
    computed: int
    awaited: int
    proposed: list[int]
    drafts: list[int]
    absorbed: int
    acceptance: Acceptance | None
    guesses: tuple[int, int, int]
    lookup: Lookup | None

    @property
    def is_decoding(self) -> bool: ...
    @property
    def is_scoring_prompt(self) -> bool: ...
    def room(self, model_len_max: int) -> int: ...
    def rewind(self, count: int) -> None: ...
    def permitted(self, tokens: list[int]) -> list[int]: ...


class Speculation:
    """Sets `drafts` of the sequences that decode; `count` is what a program has to hold a row."""

    def __init__(self, info: RunnerInfo, config: SpeculationConfig | None) -> None:
        buckets = info.buckets
        self._info, self._config = info, config
        self._counts = buckets.drafts or tuple(range(1, buckets.lookahead + 1))
        self.policy = Policy(self._counts, has_drafter=buckets.has_drafter)
        self._overall = Acceptance()
        self._turn = 0
        self.count = 0
        self.drafts = self.draft_tokens = 0
        self.accepted = [0] * buckets.lookahead

    def plan(self, running: Iterable[Sequence]) -> None:
        """Choose for a step of the running sequences."""
        self.count = 0
        if self._config is None:
            return
        ready = [s for s in running if s.is_decoding]
        self._turn += 1
        if self.policy.is_off and len(ready) > FEW and self._turn % REST:
            return  # looking costs time too, where it is seldom worth it
        lag_max = LAG_MAX // max(len(ready), 1)
        guesses = [self._guess(s, self._config, lag_max) for s in ready]
        rates = [self._acceptance(s) for s in ready]
        self.count = self.policy.choose(rates, [n for n, _ in guesses])
        rows = [s for s in running if s.is_decoding or s.is_scoring_prompt]
        if not self._info.is_ragged and not all(map(self._fits, rows)):
            self.count = 0
        if not self.count:
            self._overall.fade()
        for sequence, (room, tokens) in zip(ready, guesses, strict=True):
            if not self.count:
                self._acceptance(sequence).fade()
            if sequence.awaited:
                continue
            sequence.drafts = sequence.permitted(tokens[: self.count])
            is_still = sequence.computed == sequence.planned
            if self._lag(sequence) and is_still and room and self.count:
                sequence.drafts = []
                self.policy.went_back(self._lag(sequence))
                sequence.rewind(sequence.absorbed)

    def rests(self, rows: int) -> bool:
        """Whether so many sequences are known to decode faster plainly, so that prompts need not be
        taken in by the drafter; those that were not go without guesses."""
        return not self.count and self.policy.is_off_at(rows)

    def waits(self, sequence: Sequence) -> bool:
        """Whether a sequence has to wait for a token that is on its way, to guess behind it."""
        return self.count > 0 and sequence.awaited > 0

    def verified(self, sequence: Sequence, drafted: int, stood: int) -> None:
        """Of a sequence's drafts the first `stood` did."""
        self._acceptance(sequence).add(stood, drafted)
        drafts, guessed, accepted = sequence.guesses
        sequence.guesses = drafts + 1, guessed + drafted, accepted + stood
        self.drafts += 1
        self.draft_tokens += drafted
        for position in range(stood):
            self.accepted[position] += 1

    def _acceptance(self, sequence: Sequence) -> Acceptance:
        if sequence.acceptance is None:
            sequence.acceptance = Acceptance(self._overall)
        return sequence.acceptance

    def _guess(
        self, sequence: Sequence, config: SpeculationConfig, lag_max: int = LAG_MAX
    ) -> tuple[int, list[int]]:
        """How many tokens a sequence may draft, and those there are."""
        room = min(sequence.room(self._info.model_len_max), self._info.buckets.lookahead)
        if self._info.buckets.has_drafter:
            return (0, []) if self._lag(sequence) > lag_max else (room, sequence.proposed[:room])
        if sequence.lookup is None:
            sequence.lookup = Lookup(config.lookup_min, config.lookup_max)
        found = sequence.lookup.guess(sequence.tokens, room) if room else []
        # A placeholder of a picture need not be in the vocabulary, and is never said.
        found = list(takewhile(lambda token: token < self._info.vocab_size, found))
        return len(found), found

    def _lag(self, sequence: Sequence) -> int:
        """Tokens that went by without the drafter, while nothing was guessed; not those in flight,
        which it may be taking in."""
        has_drafter = self._info.buckets.has_drafter
        return sequence.computed - sequence.absorbed if has_drafter else 0

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a row of the largest context holds the sequence and its drafts."""
        return sequence.planned + 1 + self.count <= self._info.buckets.contexts[-1]
