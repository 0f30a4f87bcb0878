"""Adapter slots under any order of plans, moves, starts and ends: who may start, who is evicted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ranvier.schedule.slots import AdapterSlots, Turnstile, upcoming

NAMES = ["", *"abcdefg"]


class SlotMachine(RuleBasedStateMachine):
    """A queue, a batch of `rows`, and weights that may be dropped from host memory at any time."""

    @initialize(
        count=st.integers(1, 4), rows=st.integers(1, 6),
        eviction=st.sampled_from(["lru", "lfu"]), pinned=st.sets(st.sampled_from("abc")),
    )  # fmt: skip
    def begin(self, count, rows, eviction, pinned):
        self.slots = AdapterSlots(count, eviction, decay_uses=4)
        self.count, self.rows = count, rows
        self.slots.pinned = set(sorted(pinned)[: count - 1])
        self.waiting, self.running, self.flying, self.loaded = [], [], [], set()
        self.number = 0

    @rule(name=st.sampled_from(NAMES))
    def arrive(self, name):
        self.number += 1
        self.waiting.append((self.number, name))

    @rule()
    def plan(self):
        before = dict(self.slots.users)
        turnstile = Turnstile(self.slots, self.loaded.__contains__)
        passed = []
        for item in list(self.waiting):
            if len(self.running) >= self.rows:
                break
            if not turnstile.lets(item[1]):
                passed.append(item)
                continue
            self.waiting.remove(item)
            slot = self.slots.enter(item[1])
            assert (slot == 0) == (item[1] == "")
            assert not any(name == item[1] for _, name in self.flying), "its weights are on the way"
            self.running.append((*item, slot))
        assert not any(name == "" for _, name in passed), "the base model never waits for a slot"
        assert not set(turnstile.wanted) & self.loaded
        assert len(turnstile.wanted) <= self.count + 1
        self.wanted = turnstile.wanted
        moves = self.slots.take_moves()
        assert all(not before.get(name) for _, name in moves), "an adapter in use was moved"
        self.flying += moves

    @precondition(lambda self: getattr(self, "flying", None))
    @rule(is_refused=st.sampled_from([False, False, True]))
    def arrive_on_device(self, is_refused):
        _, name = self.flying.pop(0)
        self.slots.placing.discard(name)
        if is_refused:
            self.slots.forget(name)
            self.waiting = [item for item in self.waiting if item[1] != name]

    @rule()
    def load(self):
        self.loaded |= set(getattr(self, "wanted", ()))

    @rule(name=st.sampled_from(NAMES))
    def drop_from_host(self, name):
        self.loaded.discard(name)

    @precondition(lambda self: getattr(self, "running", None))
    @rule(data=st.data())
    def end(self, data):
        item = data.draw(st.sampled_from(self.running))
        self.running.remove(item)
        self.slots.leave(item[1])

    @precondition(lambda self: getattr(self, "running", None))
    @rule()
    def preempt(self):
        number, name, _ = self.running.pop()
        self.slots.leave(name)
        self.waiting.insert(0, (number, name))

    @rule()
    def lose_device(self):
        for _, name, _ in self.running:
            self.slots.leave(name)
        self.running, self.flying = [], []
        self.slots.forget_all()

    @invariant()
    def is_sound(self):
        if not hasattr(self, "slots"):
            return
        slots = self.slots
        used = list(slots.slot_of.values())
        assert len(set(used)) == len(used) and set(used) <= set(range(1, self.count + 1))
        assert sorted([*used, *slots._free]) == list(range(1, self.count + 1)), "a slot is lost"
        for _, name, slot in self.running:
            assert not name or slots.slot_of[name] == slot, "a running adapter was moved"
        users = [name for _, name, _ in self.running if name]
        assert dict(slots.users) == {name: users.count(name) for name in users}
        assert slots.placing == {name for _, name in self.flying}
        assert slots.placing <= set(slots.slot_of)

    def teardown(self):
        """Whoever waits gets to run, in the end, though others keep coming."""
        if not hasattr(self, "slots"):
            return
        old = {number for number, _ in self.waiting}
        for turn in range(40 * (len(old) + 4)):
            if not old & {number for number, _ in self.waiting}:
                return
            # The most popular adapters are asked for again and again.
            for name in list(self.slots.users)[:3]:
                self.arrive(name)
            self.plan()
            self.load()
            while self.flying:
                self.arrive_on_device(is_refused=False)
            # Each runs for some turns.
            for item in [item for item in self.running if (item[0] + turn) % 3 == 0]:
                self.running.remove(item)
                self.slots.leave(item[1])
            self.is_sound()
        raise AssertionError("starved")


SlotMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSlots = SlotMachine.TestCase


def use(slots, names):
    for name in names:
        if name not in slots.slot_of:
            slots.place(name)
            slots.placing.discard(name)
        slots.enter(name)
        slots.leave(name)


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(1, 4))
def test_lru_keeps_those_used_last(names, count):
    slots = AdapterSlots(count)
    use(slots, names)
    last = list(dict.fromkeys(reversed(names)))[:count]
    assert set(slots.slot_of) == set(last)
    assert slots.hits + slots.misses == len(names)


def test_lfu_keeps_the_popular_one_until_its_fame_has_faded():
    slots = AdapterSlots(2, "lfu", decay_uses=8)
    use(slots, "aaaaabcd")
    assert set(slots.slot_of) == {"a", "d"}
    use(slots, "dddddddd" * 2 + "e")
    assert "a" not in slots.slot_of


@given(st.lists(st.sampled_from(NAMES), max_size=40), st.integers(1, 4))
def test_upcoming_are_the_first_that_wait_for_a_slot(waiting, count):
    slots = AdapterSlots(count)
    Turnstile(slots, lambda adapter: True).lets("a")
    soon = upcoming(slots, waiting)
    others = [name for name in dict.fromkeys(waiting) if name not in ("", "a")]
    assert soon == others[:count]
