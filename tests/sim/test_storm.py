"""Storms: preemption, cancellation, device errors, both orders; invariants at every turn."""

from __future__ import annotations

import dataclasses

import pytest

from tests.sim import storm

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_ends_every_request_once_with_its_own_tokens(seed):
    for scenario in storm.scenarios(seed):
        storm.run(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_a_preemption_storm_ends(seed):
    scenario = storm.Scenario(seed, "overlapped", blocks=26, requests=40)
    assert storm.run(scenario).preemptions > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("caching", [True, False])
def test_both_orders_give_the_same_tokens(seed, caching):
    plain = storm.Scenario(seed, "plain", blocks=30, caching=caching)
    overlapped = dataclasses.replace(plain, order="overlapped")
    first, second = storm.run(plain), storm.run(overlapped)
    assert first.tokens == second.tokens
    assert first.reasons == second.reasons


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_guesses_change_no_token_in_any_weather(seed, method):
    accepted = 0
    for scenario in storm.scenarios(seed):
        accepted += storm.run(dataclasses.replace(scenario, method=method)).accepted
    assert accepted > 100


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_many_storms(seed):
    for scenario in storm.scenarios(seed):
        storm.run(scenario)


def test_a_failure_names_one_command_with_its_seed(monkeypatch):
    monkeypatch.setattr(storm, "expected", lambda request, index, vocab: [-1] * 20)
    with pytest.raises(AssertionError, match="python -m tests.sim.storm 3"):
        storm.run(storm.Scenario(3))
