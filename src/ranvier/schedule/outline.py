"""Outline: a step being put together within the limits of one kind of program.

A ragged step takes any mix. A prefill step takes one sequence's chunk. A decode step takes one
token a sequence, and its drafts: those that generate, and prompts whose tokens are scored, as only
a row of its own gives each token's logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.core.buckets import smallest
from ranvier.core.program import Family, ProgramShape
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan
from ranvier.schedule.sequence import Sequence

__all__ = ["Launch", "Outline", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a plan: whose it is, and which prompt token it scores (-1: it draws).

    `drafts` are verified by the samples that follow.
    """

    sequence: Sequence
    scored: int = -1
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """A plan with what commit needs to read its result."""

    plan: StepPlan
    rows: list[Row | None]
    """Of each sample; None: its row is that of an earlier one, whose drafts it verifies."""
    parts: list[tuple[Sequence, int, int]]
    """(sequence, its epoch, tokens computed after this step whatever becomes of drafts)."""
    is_decode: bool
    """Whether it takes no chunk of a prompt."""


class Outline:
    """Sequences and token counts of one step; `launch` makes the plan.

    `draft`: how many tokens a sequence the program is to draft, or to take in a decode row.
    `is_resting`: the drafter takes no prompts in.
    """

    def __init__(
        self,
        info: RunnerInfo,
        family: Family,
        tokens_max: int,
        draft: int = 0,
        *,
        is_resting: bool = False,
    ) -> None:
        self._info = info
        self._family = family
        self._draft = draft
        self._is_resting = is_resting
        seen = 1 + info.buckets.lookahead
        self._left = info.rows_max * seen if family == "decode" else tokens_max
        rows = {"prefill": 1, "decode": info.rows_max, "step": info.rows_max * seen}
        self._rows_left = rows[family]
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
        is_scoring, wanted = sequence.is_scoring_prompt, sequence.left + len(sequence.drafts)
        if self._family == "step":
            rows = self._rows_left if is_scoring or sequence.drafts else self._left
            return min(wanted, self._left, rows)
        is_decode = is_scoring or (sequence.left == 1 and sequence.planned > 0)
        if is_decode != (self._family == "decode"):
            return 0
        if is_decode:
            return 1 if is_scoring else min(wanted, 1 + self._draft)
        return min(wanted, self._left)

    def add(self, sequence: Sequence, count: int) -> None:
        """Take `count` tokens of a sequence; drafts that find no room are dropped."""
        del sequence.drafts[max(count - sequence.left, 0) :]
        self._parts[id(sequence)] = (sequence, count)
        self._left -= count
        self._rows_left -= self._rows(sequence, count)

    def remove(self, sequence: Sequence) -> None:
        part = self._parts.pop(id(sequence), None)
        if part is not None:
            self._left += part[1]
            self._rows_left += self._rows(sequence, part[1])

    def launch(self) -> Launch | None:
        """Freeze the plan and advance the sequences to after it."""
        chunks: list[Chunk] = []
        samples: list[Sample] = []
        rows: list[Row | None] = []
        parts = []
        is_decode = all(sequence.is_decoding for sequence, _ in self._parts.values())
        for sequence, count in self._parts.values():
            if not count:
                continue
            _add_rows(sequence, count, len(chunks), samples, rows)
            chunks.append(self._chunk(sequence, count))
            sequence.planned += count - len(sequence.drafts)
            parts.append((sequence, sequence.epoch, sequence.planned))
            if not sequence.left and sequence.request.params.max_tokens != 0:
                sequence.awaited += 1
                sequence.awaited_sample = len(samples) - 1
        if not chunks:
            return None
        program = self._program(chunks, is_decode=is_decode)
        return Launch(StepPlan(program, chunks, samples), rows, parts, is_decode)

    def _program(self, chunks: list[Chunk], *, is_decode: bool) -> ProgramShape:
        info, buckets = self._info, self._info.buckets
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        context = max(chunk.start + len(chunk.token_ids) for chunk in chunks)
        if self._family == "prefill":
            return info.prefill(tokens, context)
        draft = self._draft if buckets.has_drafter else max(chunk.drafts for chunk in chunks)
        if self._family == "decode":
            # A row takes all its drafts' places, and a drafter goes on behind them if it can.
            draft = smallest((0, *buckets.drafts), draft)
            needed = max(chunk.start for chunk in chunks) + 1 + draft
            context = max(needed, min(needed + buckets.has_drafter * draft, buckets.contexts[-1]))
            return info.decode(len(chunks), context, draft)
        if buckets.has_drafter and not is_decode and not self._is_resting:
            draft = draft or buckets.drafts[0]  # the drafter takes prompts in, guessing or not
        return info.step(tokens, draft if buckets.has_drafter else 0)

    def _rows(self, sequence: Sequence, count: int) -> int:
        """Rows that a part takes: sequences of a decode step, samples of others."""
        if self._family == "decode":
            return 1
        return count if sequence.is_scoring_prompt else 1 + len(sequence.drafts)

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        start, blocks, drafts = sequence.planned, list(sequence.blocks), sequence.drafts
        media, slot = sequence.media(count), sequence.slot
        if sequence.awaited:
            return Chunk(start, [0], blocks, sequence.awaited_sample, media=media, slot=slot)
        known = sequence.tokens[start : start + count]
        if not self._info.buckets.has_drafter:
            count = len(drafts)
            return Chunk(start, [*known, *drafts], blocks, drafts=count, media=media, slot=slot)
        follows = sequence.tokens[start + count : start + count + 1] or [0]
        uniforms = sequence.uniforms(self._info.buckets.lookahead + self._draft)
        return Chunk(
            start, [*known, *drafts], blocks, drafts=len(drafts), media=media, slot=slot,
            next_id=follows[0], uniforms=uniforms if self._draft else [],
        )  # fmt: skip


def _add_rows(
    sequence: Sequence, count: int, chunk: int, samples: list[Sample], rows: list[Row | None]
) -> None:
    start = sequence.planned
    if sequence.is_scoring_prompt:
        for offset in range(min(count, sequence.prompt_count - 1 - start)):
            target = start + offset + 1
            samples.append(sequence.score(chunk, offset, sequence.tokens[target]))
            rows.append(Row(sequence, target))
    if count >= sequence.left and sequence.request.params.max_tokens != 0:
        drafts = tuple(sequence.drafts)
        samples += sequence.samples(chunk, sequence.left - 1)
        rows += [Row(sequence, drafts=drafts), *[None] * len(drafts)]
