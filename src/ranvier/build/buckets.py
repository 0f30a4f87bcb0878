"""Which token buckets exist: a geometric ladder from one token to the largest step."""

from __future__ import annotations

from ranvier.core.errors import ConfigError

__all__ = ["token_buckets"]

RATIO = 4
SMALLEST = 8


def token_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """Ascending bucket sizes; the largest equals max_num_batched_tokens. Raises ConfigError.

    Kernels stop at the live rows, so a wide ladder costs little padding and few compiles; there is
    a bucket for one row (decode alone) and one for a full decode batch.
    """
    if max_num_batched_tokens < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens={max_num_batched_tokens} is below "
            f"max_num_seqs={max_num_seqs}: a step could not decode every sequence.",
            hint="Raise --max-num-batched-tokens or lower --max-num-seqs.",
        )
    sizes = {1, max_num_batched_tokens}
    if max_num_seqs > 1:
        sizes.add(max_num_seqs)
    size = SMALLEST
    while size < max_num_batched_tokens:
        sizes.add(size)
        size *= RATIO
    return tuple(sorted(sizes))
