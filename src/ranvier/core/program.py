"""ProgramShape: the static shape and the name of one program, and the table of all of them.

The one list that the build compiles, the artifact holds, the runner loads and the scheduler chooses
from. Knows nothing of jax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.core.buckets import BucketSet, smallest
from ranvier.core.layout import MetaLayout
from ranvier.core.media import VisionInfo

__all__ = [
    "Family", "KvLayout", "ProgramShape", "decode_shape", "encoder_shapes", "place_shapes",
    "prefill_shape", "program_shapes", "step_shape",
]  # fmt: skip

Family = Literal["step", "prefill", "decode", "patches", "tiles", "place"]
KvLayout = Literal["block", "contiguous"]


@dataclass(frozen=True, slots=True)
class ProgramShape:
    """What one program takes.

    "step": up to `tokens` tokens of any mix of sequences; "prefill": a chunk of one sequence;
    "decode": one token and `draft` drafts each of `rows` sequences; "patches" and "tiles": one
    picture of up to `tokens` of them, which is encoded. `rows` bounds the sequences, `samples` the
    rows of logits (0: as `rows`). "place" moves a piece of an adapter into a slot.
    `context` bounds the tokens of a sequence after the step; 0: the model's length bounds them.
    `lookahead` > 0: its drafter takes the tokens in, after up to so many drafts a sequence are
    verified, and drafts `draft` new ones.
    """

    family: Family
    tokens: int
    rows: int
    context: int = 0
    samples: int = 0
    draft: int = 0
    lookahead: int = 0

    @property
    def name(self) -> str:
        """The name in profiles, messages and file names: step.t8.k4, decode.r4.c512, encode.n4."""
        if self.family == "place":
            return "adapter.place"
        if self.family in ("patches", "tiles"):
            return f"encode.{'p' if self.family == 'patches' else 'n'}{self.tokens}"
        size = f"r{self.rows}" if self.family == "decode" else f"t{self.tokens}"
        draft = f".k{self.draft}" if self.draft or self.lookahead else ""
        return f"{self.family}.{size}{draft}" + (f".c{self.context}" if self.context else "")

    def layout(
        self, block_tokens: int, model_len_max: int, vision: VisionInfo | None = None
    ) -> MetaLayout:
        """The packed buffer of this program; its block tables cover the context alone."""
        context = self.context or model_len_max
        blocks = -(-context // block_tokens)
        return MetaLayout(
            self.tokens, self.rows, blocks, self.family, min(context, block_tokens),
            samples=self.samples, lookahead=self.lookahead, draft=self.draft, vision=vision,
        )  # fmt: skip


def step_shape(buckets: BucketSet, rows_max: int, size: int, draft: int = 0) -> ProgramShape:
    """The ragged program of a bucket; its samples allow for drafts that are verified.

    Where there is a drafter, it has no part in those that make no drafts. Steps larger than a
    decode step of every row, which prefill fills, are there without it and with it; it takes their
    tokens in and drafts nothing.
    """
    decoded = rows_max * (1 + buckets.lookahead)
    is_large = size > smallest(buckets.tokens, min(decoded, buckets.tokens[-1]))
    lookahead = _verified(buckets) if draft else 0
    draft = 0 if is_large else draft
    rows, samples = min(size, rows_max), min(size, decoded)
    return ProgramShape("step", size, rows, 0, samples, draft, lookahead)


def prefill_shape(buckets: BucketSet, size: int, context: int) -> ProgramShape:
    """The program of one sequence's chunk."""
    return ProgramShape("prefill", size, 1, context, 1, 0, _verified(buckets))


def decode_shape(buckets: BucketSet, rows: int, context: int, draft: int = 0) -> ProgramShape:
    """The program of one token and `draft` drafts each of `rows` sequences; 0: a plain one."""
    tokens, lookahead = rows * (1 + draft), _verified(buckets) if draft else 0
    return ProgramShape("decode", tokens, rows, context, tokens, draft, lookahead)


def program_shapes(buckets: BucketSet, rows_max: int) -> tuple[ProgramShape, ...]:
    """Every program of a bucket set: steps, then prefills, then decodes, ascending."""
    drafting = (0, *buckets.drafts) if buckets.has_drafter else (0,)
    steps = [step_shape(buckets, rows_max, t, k) for t in buckets.tokens for k in drafting]
    prefills = [prefill_shape(buckets, t, c) for t, c in buckets.prefill_programs]
    decodes = [
        decode_shape(buckets, r, c, k)
        for r, c in buckets.decode_programs
        for k in (0, *buckets.drafts)
    ]
    return (*dict.fromkeys(steps), *prefills, *decodes)


def encoder_shapes(vision: VisionInfo | None) -> tuple[ProgramShape, ...]:
    """The programs that encode pictures, ascending; none where a model sees none."""
    return tuple(ProgramShape(vision.unit, units, 1) for units in vision.units) if vision else ()


def place_shapes(adapter_slots: int) -> tuple[ProgramShape, ...]:
    """The program that fills slots of adapters; none where there are no slots."""
    return (ProgramShape("place", 0, 0),) if adapter_slots else ()


def _verified(buckets: BucketSet) -> int:
    return buckets.lookahead if buckets.has_drafter else 0
