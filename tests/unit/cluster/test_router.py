"""The router: prefixes stay where they are cached, work spreads, what is lost gets nothing."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from ranvier.cluster.router import SEQUENCE_TOKENS, Router
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams


def request(name, tokens, salt="", n=1):
    params = SamplingParams(n=n)
    return Request(
        request_id=name, prompt_token_ids=list(tokens), params=params, seed=1, cache_salt=salt
    )


def router(count=2, blocks=1000):
    return Router(count, block_tokens=4, block_count=blocks)


def test_equal_replicas_take_turns():
    it = router(3)
    chosen = []
    for i in range(6):
        chosen.append(it.choose(request(f"r{i}", [i])))
        it.end(chosen[-1], f"r{i}")
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_a_prefix_goes_where_it_is_cached_until_that_replica_is_busier_than_computing_it_anew():
    it, prefix = router(), range(400)
    home = it.choose(request("first", prefix))
    it.end(home, "first")
    for i in range(12):  # each a token and the price of a sequence: less than 400 of prefill
        assert it.choose(request(f"r{i}", [*prefix, i])) == home
    assert it.choose(request("r12", [*prefix, 98])) == home
    assert it.choose(request("more", [*prefix, 99])) == 1 - home


def test_another_salt_is_another_prefix():
    it, prefix = router(), range(40)
    home = it.choose(request("a", prefix, "x"))
    it.end(home, "a")
    assert it.choose(request("b", prefix, "y")) == 1 - home


def test_a_part_of_a_block_is_no_prefix_and_a_block_counts_only_behind_its_own_head():
    it = router()
    home = it.choose(request("a", [1, 2, 3, 4, 5, 6, 7, 8]))
    it.end(home, "a")
    other = it.choose(request("b", [9, 9, 9, 9, 5, 6, 7, 8]))
    assert other == 1 - home


def test_what_ends_is_no_work_and_sequences_count_each():
    it = router()
    first = it.choose(request("a", [1] * 8, n=3))
    assert it.work(first) == 8 + 3 * SEQUENCE_TOKENS
    it.end(first, "a")
    it.end(first, "a")
    assert it.work(first) == 0


def test_the_memory_of_a_replica_is_as_large_as_its_cache():
    it = router(blocks=3)
    home = it.choose(request("a", [1] * 12))
    it.end(home, "a")
    for i in range(4):
        it.end(it.choose(request(f"r{i}", [10 + i] * 12)), f"r{i}")
    assert all(len(replica.blocks) <= 3 for replica in it._replicas)


def test_a_lost_replica_gets_nothing_and_none_at_all_is_an_error():
    it = router()
    it.mark(0, is_lost=True)
    assert {it.choose(request(f"r{i}", [i])) for i in range(5)} == {1}
    it.mark(1, is_lost=True)
    with pytest.raises(LookupError):
        it.choose(request("x", [1]))
    it.mark(0, is_lost=False)
    assert it.choose(request("y", [1])) == 0


@pytest.mark.parametrize(("is_routed", "share"), [(True, (0.55, 1)), (False, (0, 0.4))])
def test_prefixes_are_found_again_where_caches_are_small(is_routed, share):
    """16 heads, 4 replicas that hold 5 each: taking turns finds a third of them."""
    rng, it = random.Random(1), router(4, blocks=5 * 16)
    heads = [[rng.randrange(1000) for _ in range(64)] for _ in range(16)]
    held = [OrderedDict() for _ in range(4)]
    hits = 0
    for i in range(400):
        head = rng.randrange(16)
        chosen = it.choose(request(f"r{i}", [*heads[head], i])) if is_routed else i % 4
        hits += head in held[chosen]
        held[chosen][head] = None
        held[chosen].move_to_end(head)
        if len(held[chosen]) > 5:
            held[chosen].popitem(last=False)
        for index in range(4):  # eight are open at any time
            it.end(index, f"r{i - 8}")
    assert share[0] <= hits / 400 <= share[1], hits / 400
