"""Buckets that a user listed: inclusive, within their limits, completed, proven."""

from __future__ import annotations

import pytest

from ranvier.build.buckets import resolve_ragged, resolve_unragged, token_buckets
from ranvier.core.buckets import BucketLimits, BucketRequest, Listed
from ranvier.core.errors import ConfigError

LIMITS = BucketLimits(
    max_model_len=1000, max_num_seqs=8, max_num_batched_tokens=512, block_tokens=32
)


def request(**axes):
    return BucketRequest(**{name: Listed(f"given.{name}", sizes) for name, sizes in axes.items()})


def test_nothing_listed_is_the_ladder():
    found = resolve_ragged(BucketRequest(), LIMITS)
    assert found.buckets.tokens == token_buckets(8, 512) == (1, 8, 32, 128, 512)
    assert found.notices == ()


def test_ragged_lists_are_the_programs_with_the_limits_added():
    found = resolve_ragged(request(prefill_tokens=(128, 256), decode_rows=(2, 4)), LIMITS)
    assert found.buckets.tokens == (2, 4, 8, 128, 256, 512)
    assert found.buckets.step(128) == 128


def test_ragged_programs_serve_every_context_and_say_so():
    found = resolve_ragged(request(contexts=(128,), prefixes=(64,)), LIMITS)
    assert found.buckets.tokens == token_buckets(8, 512)
    assert [n.split()[0] for n in found.notices] == ["given.contexts", "given.prefixes"]


def test_unragged_lists_are_kept_and_completed():
    asked = request(prefill_tokens=(128, 256), decode_rows=(1, 4), contexts=(128, 500))
    found = resolve_unragged(asked, LIMITS)
    assert found.buckets.prefill_tokens == (128, 256, 512)
    assert found.buckets.decode_rows == (1, 4, 8)
    assert found.buckets.contexts == (128, 512, 1024)
    assert found.notices == ("given.contexts is rounded up to blocks of 32: [128, 512]",)


def test_a_prefix_bucket_adds_its_context():
    found = resolve_unragged(request(prefill_tokens=(64, 128), prefixes=(256,)), LIMITS)
    # Chunks after no prefix, chunks after the prefix, everything.
    assert found.buckets.contexts == (128, 384, 1024)


def test_unlisted_axes_are_automatic():
    found = resolve_unragged(request(decode_rows=(8,)), LIMITS)
    assert found.buckets.decode_rows == (8,)
    assert len(found.buckets.prefill_tokens) > 1


def test_a_set_of_automatic_sizes_says_its_padding():
    found = resolve_unragged(BucketRequest(), LIMITS)
    assert len(found.notices) == 1 and "expected padding" in found.notices[0]
    assert resolve_unragged(request(decode_rows=(8,)), LIMITS).notices == ()


def test_one_bucket_an_axis_when_bucketing_is_off():
    off = BucketRequest(single="override_neuron_config.enable_bucketing")
    assert resolve_ragged(off, LIMITS).buckets.tokens == (8, 512)
    found = resolve_unragged(off, LIMITS).buckets
    assert (found.prefill_programs, found.decode_programs) == (((512, 1024),), ((8, 1024),))


@pytest.mark.parametrize("resolve", [resolve_ragged, resolve_unragged])
@pytest.mark.parametrize(
    ("axis", "size", "limit"),
    [("prefill_tokens", 1024, "max_num_batched_tokens=512"), ("decode_rows", 16, "max_num_seqs=8")],
)
def test_a_bucket_beyond_its_limit_names_its_key(resolve, axis, size, limit):
    with pytest.raises(ConfigError, match=f"given.{axis} has .{size}., beyond {limit}"):
        resolve(request(**{axis: (4, size)}), LIMITS)


@pytest.mark.parametrize("axis", ["contexts", "prefixes"])
def test_a_context_beyond_the_model_names_its_key(axis):
    with pytest.raises(ConfigError, match=rf"given.{axis} has \[1001\], beyond max_model_len=1000"):
        resolve_unragged(request(**{axis: (1001,)}), LIMITS)


def test_a_step_too_small_for_every_row_is_refused():
    small = BucketLimits(
        max_model_len=64, max_num_seqs=8, max_num_batched_tokens=8, block_tokens=32, lookahead=1
    )
    with pytest.raises(ConfigError, match="below the 16 tokens"):
        resolve_ragged(BucketRequest(), small)
