"""Every step within the limits has a program, whatever the limits and the budget."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.build.buckets import token_buckets
from ranvier.build.traffic import automatic_tokens, automatic_unragged
from ranvier.core.buckets import BucketLimits, BucketSet, prove_coverage


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
    context = data.draw(st.integers(1, own.max_model_len + own.lookahead))
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
