"""What must hold between any two turns: the invariants of blocks and scheduler, checked in full.

Reads private state on purpose: it is the second opinion on the classes that keep it. Knows nothing
of devices or of text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ranvier.media.features import FeatureRows
from ranvier.schedule.blocks import BlockPool, block_count
from ranvier.schedule.scheduler import Scheduler

__all__ = ["check_features", "check_pool", "check_scheduler"]


def check_pool(pool: BlockPool, tables: list[list[int]]) -> None:
    """Assert the pool's invariants; `tables` are the block lists of all who hold blocks now."""
    held = Counter(block for table in tables for block in table)
    for table in tables:
        assert len(set(table)) == len(table), f"a sequence lists a block twice: {table}"
    counts = {block: n for block, n in enumerate(pool._references) if n}
    assert counts == dict(held), f"references {counts}, held {dict(held)}"
    free, idle = list(pool._free), set(pool._idle)
    everything = [*free, *idle, *held]
    assert sorted(everything) == list(range(1, pool.total + 1)), "a block is lost or in two places"
    assert pool.free == len(free) + len(idle)
    cached = set(pool._digest_of)
    assert idle <= cached and not cached & set(free), "free and cached are mixed up"
    assert pool._block_of == {digest: block for block, digest in pool._digest_of.items()}
    assert set(pool._entry_of) == cached


def check_features(features: FeatureRows, held: list[Iterable[bytes]]) -> None:
    """Assert the invariants of the feature buffer; `held` are the pictures of all who hold some."""
    entries = features._entries
    users = Counter(key for keys in held for key in keys)
    assert users == {key: entry.users for key, entry in entries.items() if entry.users}
    rows = [*features._free, *(row for entry in entries.values() for row in entry.rows)]
    vision = features._vision
    every = range(vision.is_cross, vision.rows) if vision is not None else ()
    assert sorted(rows) == list(every), "a feature row is lost or in two places"
    waiting = {key for key, entry in entries.items() if not entry.is_ready}
    assert set(features.pending) == waiting
    assert waiting <= set(users), "nobody waits for a pending picture"


def check_scheduler(scheduler: Scheduler, *, flying_max: int = 1) -> None:
    """Assert the invariants of scheduler and pool, at most `flying_max` steps being launched."""
    running, waiting, size = scheduler.running, scheduler.waiting, scheduler.info.block_tokens
    check_pool(scheduler.pool, [sequence.blocks for sequence in running])
    check_features(scheduler.features, [s.pictures.rows for s in running if s.pictures])
    names = [id(sequence) for sequence in [*running, *waiting]]
    assert len(set(names)) == len(names), "a sequence is queued twice"
    assert len(running) <= scheduler.info.rows_max
    assert all(not sequence.blocks for sequence in waiting), "a waiting sequence holds blocks"
    order = [sequence.request.priority for sequence in waiting if not sequence.epoch]
    assert order == sorted(order), f"priorities wait out of order: {order}"
    for sequence in [*running, *waiting]:
        assert not sequence.is_done
        known = len(sequence.tokens) + sequence.awaited
        assert 0 <= sequence.computed <= sequence.planned <= known
        assert 0 <= sequence.awaited <= flying_max
        assert len(sequence.blocks) >= block_count(sequence.planned, size) or sequence in waiting
        assert sequence.remembered * size <= max(sequence.planned, len(sequence.tokens) - 1)
