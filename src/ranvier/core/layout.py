"""MetaLayout: where each field of a step's packed int32 buffer lies.

The one description shared by the program that slices the buffer and the runner that fills it.
Knows nothing of jax; slices work on numpy and jax arrays alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ranvier.core.media import VisionInfo

__all__ = ["DRAFT_FIELDS", "FLOAT_FIELDS", "OUTPUT_HEAD", "SEEN_BIT", "MetaLayout"]

FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "uniform",
    "repetition",
    "frequency",
    "presence",
)
DRAFT_FIELDS = ("last_tokens", "draft_rows", "draft_counts", "next_ids")
"""Of each sequence: the index of its last known token in this step, its first sample row, how many
drafts follow that token, and the id that follows its chunk where that is known."""
OUTPUT_HEAD = 3
"""Columns of the output before the top entries: token, rank, log-probability bits."""
SEEN_BIT = 30
"""Bit of an edit's second word that says: the token occurred, apply the repetition penalty."""


@dataclass(frozen=True)
class MetaLayout:
    """Sizes of one program: tokens T, sequences S, blocks per sequence MB, samples R (0: as S).

    `family` says how tokens and rows belong together (core/program.py). `block_keys` is how many
    tokens of a block the program reads, 0 all: less than a block where the block is a whole region.
    Where there is a drafter (`lookahead` > 0) fields say what is verified and drafted. `vision`: of
    a model that sees pictures, whose steps have more fields.
    """

    tokens: int
    rows: int
    blocks: int
    family: str = "step"
    block_keys: int = 0
    samples: int = 0
    lookahead: int = 0
    draft: int = 0
    vision: VisionInfo | None = None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Field sizes in int32 words, in order."""
        rows, samples = self.rows, self.samples or self.rows
        sizes = {
            "counts": 4,
            "token_ids": self.tokens,
            "token_source": self.tokens,
            "positions": self.tokens,
            "token_seq": self.tokens,
            "query_starts": rows + 1,
            "context_lens": rows,
            "block_tables": rows * self.blocks,
            "sample_tokens": samples,
            "top_k": samples,
            "logprob_counts": samples,
            "target_ids": samples,
            "edit_counts": samples,
            "flags": samples,
            "slots": rows,
        }
        sizes.update(dict.fromkeys(FLOAT_FIELDS, samples))
        if self.lookahead:
            sizes.update(dict.fromkeys(DRAFT_FIELDS, rows))
            sizes["draft_uniform"] = rows * (self.lookahead + self.draft)
        sizes.update(self._media_sizes(self.vision) if self.vision else {})
        return sizes

    def _media_sizes(self, vision: VisionInfo) -> dict[str, int]:
        """What a model that sees pictures takes more; see core/step.py: ChunkMedia."""
        sizes = {}
        if vision.is_cross:
            sizes["cross_tables"] = self.rows * self.cross_blocks
            sizes |= {"cross_from": self.tokens, "cross_to": self.tokens}
        else:
            sizes["feature_source"] = self.tokens
        if vision.has_rope_axes:
            sizes["rope_positions"] = 3 * self.tokens
        if vision.is_whole:
            sizes["sees_to"] = self.tokens
        return sizes

    @property
    def cross_blocks(self) -> int:
        """Cross blocks of a sequence: a tile each."""
        return self.vision.images_max * self.vision.units[-1] if self.vision else 0

    @cached_property
    def slices(self) -> dict[str, slice]:
        start = 0
        slices = {}
        for name, size in self.sizes.items():
            slices[name] = slice(start, start + size)
            start += size
        return slices

    @cached_property
    def size(self) -> int:
        """Length of the buffer in int32 words."""
        return sum(self.sizes.values())

    def offset(self, name: str) -> int:
        return int(self.slices[name].start)
