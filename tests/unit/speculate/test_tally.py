"""The figures of one request: each verification is counted once, whatever its events are."""

from __future__ import annotations

import pytest

from ranvier.speculate.tally import Tally


def tally(*guesses):
    found = Tally()
    for one in guesses:
        found.take(one)
    return found


STEPS = [(0, 0, 0), (1, 3, 2), (1, 3, 2), (1, 3, 2), (2, 6, 2), (2, 6, 2), (3, 7, 3), (3, 7, 3)]
"""Of events: a plain step, then guesses of 3, 3 and 1, of which 2, 0 and 1 stood; a plain step."""


def test_every_verification_is_a_step():
    found = tally(*STEPS).metrics(3)
    assert found.per_step_drafted == [3, 3, 1] and found.per_step_accepted == [2, 0, 1]
    assert found.acceptance_histogram == [1, 1, 1, 0]
    assert found.num_spec_steps == 3 and found.num_spec_tokens == 3
    assert (found.num_draft_tokens, found.num_accepted_draft_tokens) == (7, 3)
    assert found.mean_acceptance_length == 2 and found.draft_acceptance_rate == pytest.approx(3 / 7)


def test_a_summary_leaves_the_steps_out():
    found = tally(*STEPS).metrics(3)
    assert set(found.to_dict()) - set(found.to_dict("summary")) == {
        "per_step_accepted", "per_step_drafted",
    }  # fmt: skip


def test_nothing_guessed_is_zeros():
    found = Tally().metrics(2)
    assert found.acceptance_histogram == [0, 0, 0] and found.num_spec_steps == 0
    assert (found.mean_acceptance_length, found.draft_acceptance_rate) == (1, 0)


def test_sequences_are_added_up():
    found = Tally.total([tally(*STEPS), tally((1, 2, 2))], 3)
    assert found.acceptance_histogram == [1, 1, 2, 0] and found.num_draft_tokens == 9
