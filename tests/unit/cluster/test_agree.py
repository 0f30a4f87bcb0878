"""Ranks that differ are told in what."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ranvier.cluster.agree import compare, refuse, source_hash, start_facts
from ranvier.core.errors import ConfigError


@dataclass
class Given:
    model: str = "/a"
    dtype: str = "auto"
    artifacts: str | None = None


def test_places_of_one_machine_may_differ_and_nothing_else():
    one, other = start_facts(Given(), 2), start_facts(Given(model="/b", artifacts="/c"), 2)
    assert compare(one, other, "rank 1") == []
    other = start_facts(Given(dtype="float32"), 3)
    found = compare(one, other, "rank 1 (b)")
    assert found == [
        "ranks: 2 at rank 0, 3 at rank 1 (b)",
        'option dtype: "auto" at rank 0, "float32" at rank 1 (b)',
    ]
    with pytest.raises(ConfigError, match="start.*ranks: 2 at rank 0"):
        refuse("start", found)


def test_a_fact_that_one_lacks_is_a_difference():
    assert compare({"a": "1"}, {"b": "2"}, "rank 3") == [
        "a: 1 at rank 0, nothing at rank 3",
        "b: nothing at rank 0, 2 at rank 3",
    ]


def test_the_sources_have_one_hash():
    assert source_hash() == source_hash() and len(source_hash()) == 16
