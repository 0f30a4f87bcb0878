"""BucketSet: the static shapes that programs exist for, and the proof that they are enough.

Pure data, shared by the side that compiles and the side that schedules. Knows nothing of how the
sizes were chosen. A bound is inclusive: 128 tokens use the bucket 128.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ranvier.core.errors import ConfigError

__all__ = [
    "BucketLimits", "BucketRequest", "BucketSet", "Listed", "Pair", "prove_coverage", "smallest",
]  # fmt: skip

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketLimits:
    """What a bucket set has to hold."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_tokens: int
    lookahead: int = 0
    """Draft tokens of one sequence that a step may verify; 0 without speculation.

    They add to a step's tokens, never to a context: no draft lies beyond max_model_len.
    """

    @property
    def context_max(self) -> int:
        """The longest context in tokens, rounded up to whole blocks."""
        return -(-self.max_model_len // self.block_tokens) * self.block_tokens

    @property
    def prefill_max(self) -> int:
        """Tokens of the longest prefill chunk of one sequence."""
        return min(self.max_num_batched_tokens, self.context_max)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketSet:
    """Ascending sizes per axis.

    The ragged family compiles `step.t{T}` for T in `tokens`. The unragged one compiles
    `prefill.t{T}.c{C}` for `prefill_programs` and `decode.r{R}.c{C}` for `decode_programs`; its
    three axes are empty where a build has the ragged family alone.

    Speculation: a step verifies up to `lookahead` draft tokens a sequence. `drafts` are the counts
    K of `step.t{T}.k{K}`, which draft K more on the device (`has_drafter`), or of
    `decode.r{R}.k{K}.c{C}`, which take K drafts a row.
    """

    tokens: tuple[int, ...] = ()
    prefill_tokens: tuple[int, ...] = ()
    decode_rows: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    lookahead: int = 0
    has_drafter: bool = False

    @property
    def prefill_programs(self) -> tuple[Pair, ...]:
        """(tokens, context) of every prefill program: no context is shorter than its chunk."""
        return tuple((t, c) for t in self.prefill_tokens for c in self.contexts if t <= c)

    @property
    def decode_programs(self) -> tuple[Pair, ...]:
        """(rows, context) of every decode program."""
        return tuple((r, c) for r in self.decode_rows for c in self.contexts)

    def step(self, tokens: int) -> int:
        """The ragged bucket for a step of `tokens` tokens. Raises LookupError."""
        return smallest(self.tokens, tokens)

    def prefill(self, tokens: int, context: int) -> Pair:
        """The program for a chunk of `tokens` that ends at `context`. Raises LookupError."""
        size = smallest(self.prefill_tokens, tokens)
        return size, smallest(self.contexts, max(context, size))

    def decode(self, rows: int, context: int) -> Pair:
        """The program for `rows` sequences, the longest at `context`. Raises LookupError."""
        return smallest(self.decode_rows, rows), smallest(self.contexts, context)


@dataclass(frozen=True, slots=True)
class Listed:
    """Sizes that a user gave, and the key that they were given by."""

    key: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketRequest:
    """What a user asked for, per axis; None is automatic."""

    prefill_tokens: Listed | None = None
    decode_rows: Listed | None = None
    contexts: Listed | None = None
    prefixes: Listed | None = None
    """Cached prefixes; each asks for a context of it and the longest prefill."""
    pictures: Listed | None = None
    """Of the encoder, in patches."""
    single: str = ""
    """The key that asks for one bucket an axis, or nothing."""


def smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest of ascending `sizes` that holds `needed`. Raises LookupError."""
    at = bisect_left(sizes, needed)
    if at == len(sizes):
        raise LookupError(f"no bucket of {list(sizes)} holds {needed}")
    return sizes[at]


def prove_coverage(buckets: BucketSet, limits: BucketLimits) -> None:
    """Raise ConfigError with an example that no program takes; silent when there is none.

    The lookups are monotone on ascending axes, so the largest case of each family stands for all.
    """
    for name in ("tokens", "prefill_tokens", "decode_rows", "contexts", "drafts"):
        sizes = getattr(buckets, name)
        if any(a >= b for a, b in pairwise(sizes)) or any(size < 1 for size in sizes):
            raise ConfigError(f"Buckets {name} must ascend from at least 1, are {list(sizes)}.")
    if not buckets.tokens and not buckets.contexts:
        raise ConfigError("The bucket set is empty: no step has a program.")
    if buckets.tokens:
        _try(f"a step of {limits.max_num_batched_tokens} tokens", buckets.tokens,
             limits.max_num_batched_tokens)  # fmt: skip
        decoded = limits.max_num_seqs * (1 + limits.lookahead)
        _try(f"a decode step of {decoded} tokens", buckets.tokens, decoded)
    if buckets.contexts or buckets.prefill_tokens or buckets.decode_rows:
        context = limits.max_model_len
        _try(f"a context of {context} tokens", buckets.contexts, context)
        _try(f"a prefill of {limits.prefill_max} tokens", buckets.prefill_tokens,
             limits.prefill_max)  # fmt: skip
        _try(f"a prefill bucket of {buckets.prefill_tokens[-1]} tokens", buckets.contexts,
             buckets.prefill_tokens[-1])  # fmt: skip
        _try(f"a decode step of {limits.max_num_seqs} rows", buckets.decode_rows,
             limits.max_num_seqs)  # fmt: skip


def _try(case: str, sizes: tuple[int, ...], needed: int) -> None:
    if not sizes or sizes[-1] < needed:
        raise ConfigError(
            f"No program takes {case}: the buckets are {list(sizes)}.",
            hint=f"Add a bucket of at least {needed}.",
        )
