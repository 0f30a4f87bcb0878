"""The registry of adapters: names, contents, bounds, and answers to loads."""

from __future__ import annotations

import pytest

from ranvier.adapters.registry import Adapters
from ranvier.core.errors import (
    AdapterError,
    AdapterUnavailable,
    ModelNotFound,
    RequestError,
    TooManyRequests,
)
from ranvier.core.limits import LIMITS
from ranvier.sim.adapters import SimulatedLoader, simulated_weights


def make(digests=None, **bounds):
    loader = SimulatedLoader(digests or {"p": "d", "q": "e"})
    return Adapters(loader, **{"host_max": 2, **bounds}), loader


def ends(adapters):
    lost = {}
    return {answer.ticket: answer.error for answer in adapters.turn(lost)}, lost


def test_a_load_is_answered_and_names_its_content():
    adapters, _ = make()
    adapters.load(7, "a", "p")
    assert adapters.loading == 1 and not adapters.name_count
    assert ends(adapters) == ({7: None}, {})
    assert adapters.hold("a") == "d" and adapters.is_loaded("d") and adapters.loading == 0
    assert len(adapters.load_s) == 1


def test_a_failed_load_is_answered_with_its_error_and_names_nothing():
    adapters, _ = make()
    adapters.load(7, "a", "nowhere")
    answers, _ = ends(adapters)
    assert isinstance(answers[7], AdapterError) and not adapters.name_count
    with pytest.raises(ModelNotFound, match="'a'"):
        adapters.hold("a")


def test_a_name_is_taken_by_other_content_unless_it_is_replaced_in_place():
    adapters, _ = make()
    for ticket, path, is_inplace in ((1, "p", False), (2, "p", False), (3, "q", False)):
        adapters.load(ticket, "a", path, is_inplace=is_inplace)
    answers, _ = ends(adapters)
    assert answers[1] is None and answers[2] is None, "the same content again is fine"
    assert isinstance(answers[3], RequestError) and "load_inplace" in answers[3].message
    assert adapters.hold("a") == "d"
    adapters.release("d")
    adapters.load(4, "a", "q", is_inplace=True)
    assert ends(adapters)[0] == {4: None}
    assert adapters.hold("a") == "e"
    assert not adapters.is_loaded("d"), "the old content has no name and no request"


def test_a_content_lives_while_it_has_a_name_or_a_request():
    adapters, _ = make()
    adapters.add("a", "p", simulated_weights("d"))
    adapters.add("b", "p", simulated_weights("d"))
    assert adapters.hold("a") == adapters.hold("b") == "d"
    assert adapters.unload("a") == "d"
    adapters.release("d")
    assert adapters.unload("b") == "d" and adapters.is_loaded("d")
    with pytest.raises(ModelNotFound):
        adapters.unload("b")
    adapters.release("d")
    assert not adapters.is_loaded("d") and adapters.host_bytes == 0


def test_host_memory_keeps_those_used_last_and_those_that_requests_wait_for():
    adapters, loader = make({name: name for name in "abcd"}, host_max=2)
    for name in "abc":
        adapters.add(name, name, simulated_weights(name))
    assert [adapters.is_loaded(name) for name in "abc"] == [False, True, True]
    adapters.hold("b")
    adapters.add("d", "d", simulated_weights("d"))
    assert [adapters.is_loaded(name) for name in "abcd"] == [False, True, False, True]
    adapters.want("a")
    adapters.want("a")
    adapters.want("b")
    assert adapters.loading == 1
    assert ends(adapters) == ({}, {}) and adapters.is_loaded("a") and loader.reads == 1


def test_what_is_read_again_must_be_the_same():
    adapters, loader = make({"p": "d"}, host_max=1)
    adapters.add("a", "p", simulated_weights("d"))
    adapters.add("b", "q", simulated_weights("e"))
    adapters.want("d")
    loader.digests = {"p": "changed"}
    changed = ends(adapters)[1]["d"]
    assert isinstance(changed, AdapterUnavailable) and "has changed" in changed.message
    assert not adapters.is_loaded("changed"), "other content is never kept under the name"
    adapters.want("d")
    loader.digests = {}
    assert "no such adapter" in ends(adapters)[1]["d"].message
    adapters.want("d")
    adapters.unload("a")
    assert ends(adapters) == ({}, {}), "nobody waits for it any more"


def test_loads_and_names_are_bounded():
    adapters, _ = make({"p": "d"}, names_max=3)
    refused = 0
    for ticket in range(10_000):
        try:
            adapters.load(ticket, f"a{ticket}", "p")
        except TooManyRequests as error:
            refused += 1
            assert error.status == 429 and error.retry_after_s >= 1
    assert refused == 10_000 - LIMITS.adapter_loads_max
    answers, _ = ends(adapters)
    assert [error is None for error in answers.values()].count(True) == 3
    assert "limit is 3" in answers[63].message
    with pytest.raises(RequestError, match="limit is 3"):
        adapters.load(1, "more", "p")
    adapters.load(2, "a0", "p")


def test_what_is_expected_is_read_ahead_and_kept():
    adapters, loader = make({name: name for name in "abcd"}, host_max=3)
    for name in "dabc":
        adapters.add(name, name, simulated_weights(name))
    for name in "abcd":
        adapters.hold(name)
    adapters.expect(["a", "d", "b"])
    assert adapters.loading == 1
    ends(adapters)
    assert [adapters.is_loaded(name) for name in "abcd"] == [True, False, True, True]
    assert loader.reads == 1, "one place is left to others: b is not looked at"


def test_what_is_expected_keeps_within_the_bytes_too():
    weights = {name: simulated_weights(name) for name in "abc"}
    adapters, _ = make({name: name for name in "abc"}, host_max=9, bytes_max=2 * weights["a"].bytes)
    for name in "abc":
        adapters.add(name, name, weights[name])
        adapters.hold(name)
    assert [adapters.is_loaded(name) for name in "abc"] == [True, True, False]
    adapters.expect(["a", "c"])
    assert adapters.loading == 0, "c would drive out what else is there"


def test_a_pin_is_of_a_name_and_moves_with_it_to_new_content():
    adapters, _ = make(slots=1)
    for name, digest in (("a", "d"), ("same", "d"), ("b", "e")):
        adapters.add(name, name, simulated_weights(digest))
    adapters.pin("a")
    adapters.pin("same")
    assert adapters.pins.digests == {"d"} and adapters.pins.is_full
    with pytest.raises(RequestError, match="'b' can't be pinned"):
        adapters.pin("b")
    with pytest.raises(RequestError, match="'c' can't be pinned"):
        adapters.add("c", "c", simulated_weights("f"), is_pinned=True)
    assert adapters.name_count == 3
    with pytest.raises(AdapterUnavailable, match="'b' can't run"):
        adapters.hold("b")
    adapters.unload("same")
    adapters.add("a", "new", simulated_weights("g"), is_inplace=True)
    assert adapters.pins.digests == {"g"} == adapters.pins.unplaced
    adapters.add("a", "new", simulated_weights("g"), is_pinned=False)
    assert not adapters.pins.digests and adapters.hold("b") == "e"
    adapters.pin("a")
    adapters.unload("a")
    assert not adapters.pins.digests
    with pytest.raises(ModelNotFound):
        adapters.pin("a")


def test_the_bytes_of_host_memory_are_bounded_whatever_is_loaded():
    each = simulated_weights("x").bytes
    names = [f"a{i}" for i in range(10_000)]
    adapters, loader = make({name: name for name in names}, host_max=100, bytes_max=3 * each)
    refused = 0
    for ticket, name in enumerate(names):
        try:
            adapters.load(ticket, name, name)
        except RequestError:
            refused += 1
        if ticket % 50 == 0:
            ends(adapters)
            assert adapters.host_bytes <= 3 * each
    ends(adapters)
    assert adapters.name_count == LIMITS.adapters_max and adapters.host_bytes == 3 * each
    assert loader.reads + refused == 10_000 and refused > 5_000
    assert len(adapters.load_s) <= LIMITS.adapter_loads_max + 1
    adapters.want("a0")
    ends(adapters)
    assert adapters.is_loaded("a0") and adapters.host_bytes == 3 * each


def test_an_adapter_above_the_bound_of_all_is_kept_alone():
    adapters, _ = make(host_max=4, bytes_max=1)
    for name in "de":
        adapters.add(name, name, simulated_weights(name))
    assert not adapters.is_loaded("d") and adapters.is_loaded("e")
