"""Every step within the limits has a program, whatever the limits and the budget."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.build.buckets import resolve_ragged, resolve_unragged, token_buckets
from ranvier.build.traffic import automatic_tokens, automatic_unragged
from ranvier.core.buckets import (
    BucketLimits,
    BucketRequest,
    BucketSet,
    Listed,
    prove_coverage,
)


@st.composite
def limits(draw):
    rows = draw(st.integers(1, 40))
    return BucketLimits(
        max_model_len=draw(st.integers(1, 5000)),
        max_num_seqs=rows,
        max_num_batched_tokens=draw(st.integers(rows, 3000)),
        block_tokens=32 * draw(st.integers(1, 4)),
        lookahead=draw(st.integers(0, 7)),
    )


@given(limits(), st.integers(2, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_every_step_within_the_limits_has_a_program(own, budget, data):
    found = automatic_unragged(own, budget=budget).buckets
    context = data.draw(st.integers(1, own.max_model_len))
    tokens = data.draw(st.integers(1, min(own.prefill_max, context)))
    rows = data.draw(st.integers(1, own.max_num_seqs))
    size, length = found.prefill(tokens, context)
    assert (size, length) in found.prefill_programs
    assert size >= tokens and length >= context
    count, length = found.decode(rows, context)
    assert (count, length) in found.decode_programs
    assert count >= rows and length >= context
    assert found.contexts[-1] == own.context_max


@given(limits(), st.integers(1, 8), st.data())
@settings(max_examples=40, deadline=None)
def test_every_ragged_step_has_a_program(own, budget, data):
    automatic = automatic_tokens(own, budget=budget).buckets
    ladder = BucketSet(tokens=token_buckets(own.max_num_seqs, own.max_num_batched_tokens))
    largest = max(own.max_num_batched_tokens, own.max_num_seqs)
    tokens = data.draw(st.integers(1, largest))
    assert automatic.step(tokens) >= tokens
    assert ladder.step(tokens) >= tokens
    prove_coverage(automatic, own)


@st.composite
def requests(draw, own):
    def listed(key, largest):
        sizes = draw(st.none() | st.sets(st.integers(1, largest), min_size=1, max_size=5))
        return None if sizes is None else Listed(key, tuple(sorted(sizes)))

    return BucketRequest(
        prefill_tokens=listed("prefill", own.prefill_max),
        decode_rows=listed("rows", own.max_num_seqs),
        contexts=listed("contexts", own.max_model_len),
        prefixes=listed("prefixes", own.max_model_len),
    )


@given(limits(), st.data())
@settings(max_examples=40, deadline=None)
def test_listed_buckets_are_kept_and_completed(own, data):
    asked = data.draw(requests(own))
    found = resolve_unragged(asked, own).buckets
    context = data.draw(st.integers(1, own.max_model_len))
    tokens = data.draw(st.integers(1, min(own.prefill_max, context)))
    rows = data.draw(st.integers(1, own.max_num_seqs))
    assert found.prefill(tokens, context) in found.prefill_programs
    assert found.decode(rows, context) in found.decode_programs
    for listed, sizes in (
        (asked.prefill_tokens, found.prefill_tokens), (asked.decode_rows, found.decode_rows)
    ):  # fmt: skip
        assert listed is None or set(listed.sizes) <= set(sizes)
    if own.max_num_seqs * (1 + own.lookahead) <= own.max_num_batched_tokens:
        steps = resolve_ragged(asked, own).buckets
        assert steps.step(min(tokens, own.max_num_batched_tokens)) >= tokens
        for listed in (asked.prefill_tokens, asked.decode_rows):
            assert listed is None or set(listed.sizes) <= set(steps.tokens)
