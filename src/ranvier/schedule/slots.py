"""AdapterSlots: which adapter sits in which slot of the device, and who may start with it.

Pure decisions; no weights, no device, no clock. Slot 0 is the base model and nobody's. Invariants:
an adapter sits in one slot at most; one that is being placed, that a running sequence uses or that
is pinned is never evicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal

__all__ = ["AdapterSlots", "Eviction", "Turnstile", "upcoming"]

Eviction = Literal["lru", "lfu"]
SIGHT = 256
"""Waiting sequences that are looked at for adapters needed soon."""


class AdapterSlots:
    """Slots 1 .. count. Adapters are named by the digest of their content.

    lru evicts the adapter unused for longest; lfu the one used least often, uses being halved every
    `decay_uses` of them.
    """

    def __init__(self, count: int, eviction: Eviction = "lru", decay_uses: int = 128) -> None:
        self.count = count
        self.hits = self.misses = 0
        self.pinned: set[str] = set()
        self.slot_of: dict[str, int] = {}
        """Adapters in slots, the least recently used first."""
        self.placing: set[str] = set()
        """Those of them that are still on their way."""
        self.users: Counter[str] = Counter()
        """Running sequences of an adapter."""
        self._uses: Counter[str] = Counter()
        self._entries = 0
        self._eviction, self._decay_uses = eviction, decay_uses
        self._free = list(range(count, 0, -1))
        self._moves: list[tuple[int, str]] = []

    @property
    def room(self) -> int:
        """Slots that another adapter can have now."""
        return len(self._free) + sum(map(self._is_idle, self.slot_of))

    def place(self, adapter: str) -> None:
        """Give an adapter a slot, for which it must be moved. Requires: room."""
        if not self._free:
            idle = [name for name in self.slot_of if self._is_idle(name)]
            # min() takes the first of equals: the least recently used.
            self.forget(
                min(idle, key=self._uses.__getitem__) if self._eviction == "lfu" else idle[0]
            )
        slot = self.slot_of[adapter] = self._free.pop()
        self.placing.add(adapter)
        self._moves.append((slot, adapter))
        self.misses += 1

    def take_moves(self) -> list[tuple[int, str]]:
        """(slot, adapter) of what must be moved to the device; `placing.discard` says it is."""
        moves, self._moves = self._moves, []
        return moves

    def enter(self, adapter: str) -> int:
        """A sequence starts to run with an adapter; its slot. Requires: it is there."""
        if not adapter:
            return 0
        slot = self.slot_of[adapter] = self.slot_of.pop(adapter)
        self.hits += adapter in self._uses
        self.users[adapter] += 1
        self._uses[adapter] += 1
        self._entries += 1
        if self._entries % self._decay_uses == 0:
            self._uses = Counter({name: uses // 2 for name, uses in self._uses.items()})
        return slot

    def leave(self, adapter: str) -> None:
        """A sequence has stopped running with an adapter, which stays where it is."""
        if adapter:
            self.users[adapter] -= 1
            assert self.users[adapter] >= 0, adapter
            self.users += Counter()  # drops zeros

    def forget(self, adapter: str) -> None:
        """Empty an adapter's slot. Requires: no running sequence uses it."""
        assert not self.users[adapter], adapter
        self._free.append(self.slot_of.pop(adapter))
        self.placing.discard(adapter)
        del self._uses[adapter]

    def forget_all(self) -> None:
        """Empty every slot, what was to be moved included. Requires: no sequence runs."""
        self._moves = []
        for adapter in list(self.slot_of):
            self.forget(adapter)

    def _is_idle(self, adapter: str) -> bool:
        return not (self.users[adapter] or adapter in self.pinned or adapter in self.placing)


class Turnstile:
    """Who of the waiting may start, asked in their order; one for each plan.

    Those without an adapter always may. An adapter that has no slot is placed in one that is free.
    The first sequence that finds every slot in use stops the adapter with the fewest running
    sequences from being joined, until its slot is free: so others pass by without starving it.
    `wanted` are adapters whose weights are needed soon and are not in host memory.
    """

    def __init__(self, slots: AdapterSlots, is_loaded: Callable[[str], bool]) -> None:
        self.wanted: list[str] = []
        self._slots = slots
        self._is_loaded = is_loaded
        self._reserved = 0
        self._is_full = False
        self._closed: str | None = None

    def lets(self, adapter: str) -> bool:
        """Whether a sequence with this adapter can enter now."""
        slots = self._slots
        if not adapter:
            return True
        if adapter in slots.slot_of:
            return adapter not in slots.placing and adapter != self._closed
        if adapter in self.wanted:
            return False
        has_room, is_loaded = slots.room > self._reserved, self._is_loaded(adapter)
        if has_room and is_loaded:
            slots.place(adapter)
        elif has_room:
            self._reserved += 1
        elif self._is_full:
            return False
        else:
            self._is_full = True
            busy = [name for name in slots.users if name not in slots.pinned]
            self._closed = min(busy, key=slots.users.__getitem__, default=None)
        if not is_loaded:
            self.wanted.append(adapter)
        return False


def upcoming(slots: AdapterSlots, waiting: Iterable[str]) -> list[str]:
    """The adapters that will want slots next, as many as there are slots, the first one first."""
    soon: dict[str, None] = {}
    for adapter in islice(waiting, SIGHT):
        if adapter and adapter not in slots.slot_of:
            soon[adapter] = None
            if len(soon) >= slots.count:
                break
    return list(soon)
