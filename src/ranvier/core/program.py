"""ProgramShape: the static shape and the name of one program, and the table of all of them.

The one list that the build compiles, the artifact holds, the runner loads and the scheduler chooses
from. Knows nothing of jax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.core.buckets import BucketSet
from ranvier.core.layout import MetaLayout

__all__ = ["Family", "KvLayout", "ProgramShape", "program_shapes"]

Family = Literal["step", "prefill", "decode"]
KvLayout = Literal["block", "contiguous"]


@dataclass(frozen=True, slots=True)
class ProgramShape:
    """What one program takes.

    "step": up to `tokens` tokens of any mix of sequences; "prefill": a chunk of one sequence;
    "decode": one token each of `rows` sequences. `rows` bounds the sequences and the samples.
    `context` bounds the tokens of a sequence after the step; 0: the model's length bounds them.
    """

    family: Family
    tokens: int
    rows: int
    context: int = 0

    @property
    def name(self) -> str:
        """The name in profiles, messages and file names: step.t8, decode.r4.c512."""
        size = f"r{self.rows}" if self.family == "decode" else f"t{self.tokens}"
        return f"{self.family}.{size}" + (f".c{self.context}" if self.context else "")

    def layout(self, block_tokens: int, model_len_max: int) -> MetaLayout:
        """The packed buffer of this program; its block tables cover the context alone."""
        context = self.context or model_len_max
        blocks = -(-context // block_tokens)
        return MetaLayout(self.tokens, self.rows, blocks, self.family, min(context, block_tokens))


def program_shapes(buckets: BucketSet, rows_max: int) -> tuple[ProgramShape, ...]:
    """Every program of a bucket set: steps, then prefills, then decodes, ascending."""
    steps = [ProgramShape("step", size, min(size, rows_max)) for size in buckets.tokens]
    prefills = [ProgramShape("prefill", t, 1, c) for t, c in buckets.prefill_programs]
    decodes = [ProgramShape("decode", r, r, c) for r, c in buckets.decode_programs]
    return (*steps, *prefills, *decodes)
