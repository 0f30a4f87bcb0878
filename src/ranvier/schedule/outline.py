"""Outline: a step being put together within the limits of one kind of program.

A ragged step takes any mix. A prefill step takes one sequence's chunk. A decode step takes one
token a sequence: those that generate, and prompts whose tokens are scored, as only a row of its own
gives each token's logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.core.program import Family, ProgramShape
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan
from ranvier.schedule.sequence import Sequence

__all__ = ["Launch", "Outline", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a plan: whose it is, and which prompt token it scores (-1: it draws)."""

    sequence: Sequence
    scored: int = -1


@dataclass(frozen=True, slots=True)
class Launch:
    """A plan with what commit needs to read its result."""

    plan: StepPlan
    rows: list[Row]
    parts: list[tuple[Sequence, int, int]]
    """(sequence, its epoch, tokens computed after this step)."""


class Outline:
    """Sequences and token counts of one step; `launch` makes the plan."""

    def __init__(self, info: RunnerInfo, family: Family, tokens_max: int) -> None:
        self._info = info
        self._family = family
        self._left = info.rows_max if family == "decode" else tokens_max
        self._rows_left = 1 if family == "prefill" else info.rows_max
        self._parts: dict[int, tuple[Sequence, int]] = {}

    @property
    def has_room(self) -> bool:
        return self._left > 0 and self._rows_left > 0

    def can_start(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence begins in a step of this kind."""
        return self._family == "step" or sequence.is_scoring_prompt == (self._family == "decode")

    def grant(self, sequence: Sequence) -> int:
        """How many tokens of a sequence this step may take."""
        if not self.has_room or sequence.must_wait:
            return 0
        is_scoring = sequence.is_scoring_prompt
        if self._family == "step":
            return min(sequence.left, self._left, self._rows_left if is_scoring else self._left)
        is_decode = is_scoring or (sequence.left == 1 and sequence.planned > 0)
        if is_decode != (self._family == "decode"):
            return 0
        return min(sequence.left, self._left, 1 if is_decode else self._left)

    def add(self, sequence: Sequence, count: int) -> None:
        self._parts[id(sequence)] = (sequence, count)
        self._left -= count
        self._rows_left -= _rows(sequence, count)

    def remove(self, sequence: Sequence) -> None:
        part = self._parts.pop(id(sequence), None)
        if part is not None:
            self._left += part[1]
            self._rows_left += _rows(sequence, part[1])

    def launch(self) -> Launch | None:
        """Freeze the plan and advance the sequences to after it."""
        chunks: list[Chunk] = []
        samples: list[Sample] = []
        rows: list[Row] = []
        parts = []
        for sequence, count in self._parts.values():
            if not count:
                continue
            _add_rows(sequence, count, len(chunks), samples, rows)
            chunks.append(_chunk(sequence, count))
            sequence.planned += count
            parts.append((sequence, sequence.epoch, sequence.planned))
            if not sequence.left and sequence.request.params.max_tokens != 0:
                sequence.awaited += 1
                sequence.awaited_sample = len(samples) - 1
        if not chunks:
            return None
        return Launch(StepPlan(self._program(chunks), chunks, samples), rows, parts)

    def _program(self, chunks: list[Chunk]) -> ProgramShape:
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        context = max(chunk.start + len(chunk.token_ids) for chunk in chunks)
        if self._family == "prefill":
            return self._info.prefill(tokens, context)
        if self._family == "decode":
            return self._info.decode(tokens, context)
        return self._info.step(tokens)


def _rows(sequence: Sequence, count: int) -> int:
    """Sample rows that a part takes at most."""
    return count if sequence.is_scoring_prompt else 1


def _add_rows(
    sequence: Sequence, count: int, chunk: int, samples: list[Sample], rows: list[Row]
) -> None:
    start = sequence.planned
    if sequence.is_scoring_prompt:
        for offset in range(min(count, sequence.prompt_count - 1 - start)):
            target = start + offset + 1
            samples.append(sequence.score(chunk, offset, sequence.tokens[target]))
            rows.append(Row(sequence, target))
    if count == sequence.left and sequence.request.params.max_tokens != 0:
        samples.append(sequence.sample(chunk, count - 1))
        rows.append(Row(sequence))


def _chunk(sequence: Sequence, count: int) -> Chunk:
    start = sequence.planned
    if sequence.awaited:
        return Chunk(start, [0], list(sequence.blocks), sequence.awaited_sample)
    return Chunk(start, sequence.tokens[start : start + count], list(sequence.blocks))
