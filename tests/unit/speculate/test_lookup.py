"""Prompt lookup against the obvious search."""

from __future__ import annotations

import random
import time

import pytest

from ranvier.speculate.lookup import Lookup


def obvious(tokens, count, shortest, longest):
    """The longest end that occurred before, its latest occurrence, read on into itself."""
    for size in range(longest, shortest - 1, -1):
        end = tokens[len(tokens) - size :]
        places = range(len(tokens) - size - 1, -1, -1) if size < len(tokens) else ()
        for at in places:
            if tokens[at : at + size] == end:
                found = list(tokens)
                for i in range(count):
                    found.append(found[at + size + i])
                return found[len(tokens) :]
    return []


@pytest.mark.parametrize("seed", range(30))
def test_as_the_obvious_search_while_the_text_grows(seed):
    rng = random.Random(seed)
    vocab = rng.choice([[1, 256, 65536], [0, 1], list(range(30)), [7]])
    shortest = rng.randint(1, 3)
    longest, tokens = shortest + rng.randint(0, 3), []
    lookup = Lookup(shortest, longest)
    for _ in range(60):
        tokens += rng.choices(vocab, k=rng.randint(1, 4))
        count = rng.randint(1, 6)
        assert lookup.guess(tokens, count) == obvious(tokens, count, shortest, longest)


def test_what_repeats_goes_on_repeating():
    assert Lookup(1, 3).guess([4, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]


def test_nothing_is_guessed_of_what_is_new():
    assert Lookup(2, 4).guess([1, 2, 3], 4) == []
    assert Lookup(2, 4).guess([1], 4) == []


LONG = 100_000


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ([i * 7919 % 49_999 for i in range(LONG)], [50_001, 50_002]),
        ([i % 2 * 256 for i in range(LONG)], [50_001, 0]),
        ([65536] * LONG, [1, 1]),  # its bytes occur between any two tokens
    ],
    ids=["nowhere", "alternating", "askew"],
)
def test_a_long_text_costs_little_a_step(text, end):
    lookup, tokens = Lookup(2, 5), [*text, *end]
    assert lookup.guess(tokens, 4) == []
    start_s = time.process_time()
    for token in range(50_003, 50_013):
        tokens.append(token)
        lookup.guess(tokens, 4)
        tokens.append(end[-1])
        lookup.guess(tokens, 4)
    assert time.process_time() - start_s < 0.2, "20 steps; about 1 ms each was measured"
