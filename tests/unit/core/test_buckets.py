"""BucketSet: bounds are inclusive, coverage is proven with an example."""

from __future__ import annotations

import pytest

from ranvier.core.buckets import BucketLimits, BucketSet, prove_coverage
from ranvier.core.errors import ConfigError

LIMITS = BucketLimits(
    max_model_len=1000, max_num_seqs=8, max_num_batched_tokens=256, block_tokens=32
)
WHOLE = BucketSet(
    tokens=(8, 256), prefill_tokens=(64, 256), decode_rows=(1, 8), contexts=(128, 1024)
)


def test_a_bound_is_inclusive():
    assert WHOLE.step(8) == 8
    assert WHOLE.step(9) == 256
    assert WHOLE.prefill(64, 128) == (64, 128)
    assert WHOLE.prefill(65, 129) == (256, 1024)
    assert WHOLE.decode(1, 128) == (1, 128)


def test_a_chunk_longer_than_its_context_bucket_takes_the_next_one():
    assert (256, 128) not in WHOLE.prefill_programs
    assert WHOLE.prefill(100, 100) == (256, 1024)


def test_contexts_are_whole_blocks_whatever_is_drafted():
    assert LIMITS.context_max == 1024
    ahead = BucketLimits(
        max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=256, block_tokens=32, lookahead=5
    )
    assert ahead.context_max == 1024


def test_a_whole_set_is_proven():
    prove_coverage(WHOLE, LIMITS)
    prove_coverage(BucketSet(tokens=(256,)), LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (8, 128)}, "a step of 256 tokens"),
        ({"prefill_tokens": (64,)}, "a prefill of 256 tokens"),
        ({"decode_rows": (4,)}, "a decode step of 8 rows"),
        ({"contexts": (512,)}, "a context of 1000 tokens"),
        ({"contexts": ()}, "a context of 1000 tokens"),
        ({"prefill_tokens": (2048,)}, "a prefill bucket of 2048 tokens"),
        ({"contexts": (1024, 128)}, "must ascend"),
        ({"decode_rows": (0, 8)}, "at least 1"),
    ],
)
def test_a_gap_is_named(change, message):
    fields = {
        "tokens": WHOLE.tokens, "prefill_tokens": WHOLE.prefill_tokens,
        "decode_rows": WHOLE.decode_rows, "contexts": WHOLE.contexts,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        prove_coverage(BucketSet(**{**fields, **change}), LIMITS)


def test_the_empty_set_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        prove_coverage(BucketSet(), LIMITS)


def test_a_step_that_verifies_every_row_has_a_program():
    ahead = BucketLimits(
        max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=32, block_tokens=32, lookahead=4
    )
    prove_coverage(BucketSet(tokens=(8, 40)), ahead)
    with pytest.raises(ConfigError, match="a decode step of 40 tokens"):
        prove_coverage(BucketSet(tokens=(8, 32)), ahead)
