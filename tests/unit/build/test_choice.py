"""Automatic buckets: equal to brute force, reproducible, within the budget, bad input named."""

from __future__ import annotations

from itertools import combinations

import pytest

from ranvier.build.choice import Lengths, choose_buckets, linear, log_normal
from ranvier.build.traffic import (
    Traffic,
    automatic_tokens,
    automatic_unragged,
    read_trace,
)
from ranvier.core.buckets import BucketLimits
from ranvier.core.errors import ConfigError

LIMITS = BucketLimits(
    max_model_len=4096, max_num_seqs=32, max_num_batched_tokens=1024, block_tokens=32
)


def affine(size):
    return 40.0 + size


def brute(lengths, cost, limit, count):
    """The least cost over every set of `count` observed lengths, `limit` among them."""
    total = sum(lengths.weights)

    def expected(sizes):
        pairs = zip(lengths.values, lengths.weights, strict=True)
        return sum(w * cost(min(s for s in sizes if s >= v)) for v, w in pairs) / total

    inner = [v for v in lengths.values if v != limit]
    return min(expected((*chosen, limit)) for chosen in combinations(inner, count - 1))


@pytest.mark.parametrize("cost", [linear, affine])
def test_the_choice_is_the_optimum(cost):
    lengths = Lengths.of([3, 3, 3, 8, 9, 9, 20, 21, 40, 41, 55, 64, 64, 90, 100])
    for choice in choose_buckets(lengths, cost, 100, 5):
        assert choice.sizes[-1] == 100
        best = brute(lengths, cost, 100, len(choice.sizes))
        assert choice.cost == pytest.approx(best, abs=1e-3)


def test_more_buckets_never_cost_more_and_the_padding_falls():
    choices = choose_buckets(log_normal(200, 1.2, 8192), linear, 8192, 12, tile=32)
    assert [len(c.sizes) for c in choices] == list(range(1, 13))
    assert all(a.padding > b.padding > 0 for a, b in zip(choices, choices[1:], strict=False))
    assert all(size % 32 == 0 for c in choices for size in c.sizes)
    # A ratio of two costs 0.39 on log-uniform lengths; twelve chosen sizes must beat that.
    assert choices[-1].padding < 0.39


def test_one_bucket_for_each_length_pads_nothing():
    lengths = Lengths.of([10, 20, 30])
    assert choose_buckets(lengths, linear, 30, 3)[-1].padding == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("budget", [2, 8, 32])
def test_the_budget_holds_and_the_choice_is_reproducible(budget):
    found = automatic_unragged(LIMITS, budget=budget)
    assert found.program_count <= budget
    assert found == automatic_unragged(LIMITS, budget=budget)
    assert found.buckets.contexts[-1] == 4096
    assert found.prefill_padding > 0 and found.decode_padding > 0


def test_a_larger_budget_pads_less():
    small, large = (automatic_unragged(LIMITS, budget=b) for b in (4, 32))
    assert large.prefill_padding < small.prefill_padding
    assert large.decode_padding < small.decode_padding


def test_the_sizes_follow_the_trace():
    lines = ['{"prompt_tokens": 700, "output_tokens": 60}'] * 50
    found = automatic_unragged(LIMITS, read_trace(lines), budget=8).buckets
    assert any(704 <= size <= 720 for size in found.prefill_tokens)
    assert any(760 <= size <= 896 for size in found.contexts)
    assert len(found.contexts) < 4


def test_ragged_buckets_hold_a_full_decode_step():
    found = automatic_tokens(LIMITS, budget=6)
    assert len(found.buckets.tokens) <= 6
    assert found.buckets.tokens[-1] == 1024


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no requests"),
        (["{"], "line 1"),
        (['{"prompt_tokens": 3}'], "line 1"),
        (["", "[]"], "line 2"),
        (['{"prompt_tokens": 0, "output_tokens": 1}'], "at least 1"),
        (['{"prompt_tokens": true, "output_tokens": 1}'], "integers"),
    ],
)
def test_a_bad_trace_is_named(lines, message):
    with pytest.raises(ConfigError, match=message):
        read_trace(lines)


def test_a_budget_too_small_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        choose_buckets(Lengths.of([1]), linear, 1, 0)
    with pytest.raises(ConfigError, match="program budget is 1"):
        automatic_unragged(LIMITS, Traffic.default(4096), budget=1)


def test_lengths_must_be_positive_integers():
    for bad in ([], [0], [1.5]):
        with pytest.raises(ConfigError, match="positive integers"):
            Lengths.of(bad)
