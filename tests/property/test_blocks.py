"""BlockPool under any order of calls: a rule-based machine beside a model that knows the tokens."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ranvier.schedule.blocks import BlockPool, block_count
from ranvier.sim.checker import check_pool

COUNT = 12
SIZE = 2
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)
SALTS = st.sampled_from(["", "tenant"])


class Holder:
    """A sequence as the scheduler keeps one: its tokens, its blocks, how far they are entered."""

    def __init__(self, tokens, salt, blocks, digest):
        self.tokens, self.salt, self.blocks, self.digest = tokens, salt, blocks, digest
        self.entered = len(blocks)


class PoolMachine(RuleBasedStateMachine):
    is_caching = True

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(COUNT, SIZE, is_caching=self.is_caching)
        self.holders: list[Holder] = []
        self.content: dict[int, tuple] = {}

    @rule(tokens=TOKENS, salt=SALTS)
    def start(self, tokens, salt):
        hits, digest = self.pool.lookup(tokens, salt)
        assert len(hits) * SIZE < len(tokens), "at least one token is always left to compute"
        for i, block in enumerate(hits):
            wanted = (salt, tuple(tokens[: (i + 1) * SIZE]))
            assert self.content[block] == wanted, "a hit holds another prompt's tokens"
        before = self.pool.free
        needed = block_count(len(tokens), SIZE) - len(hits)
        taken = self.pool.take(needed)
        assert (taken is None) == (needed > before)
        if taken is None:
            self.pool.release(hits)
            return
        assert not set(taken) & {b for h in self.holders for b in h.blocks}
        for block in taken:
            self.content.pop(block, None)
        self.holders.append(Holder(tokens, salt, hits + taken, digest))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def compute_one_block(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        start = holder.entered * SIZE
        if start + SIZE > len(holder.tokens):
            return
        part, block = tuple(holder.tokens[start : start + SIZE]), holder.blocks[holder.entered]
        holder.digest = self.pool.remember(block, holder.digest, part, holder.salt)
        holder.entered += 1
        self.content[block] = (holder.salt, tuple(holder.tokens[: start + SIZE]))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.release(holder.blocks)

    @rule()
    def forget_all(self):
        self.pool.forget_all()
        assert self.pool.lookup([0, 0, 0, 0], "")[0] == []

    @rule(count=st.integers(0, COUNT + 1))
    def take_and_give_back(self, count):
        free = self.pool.free
        taken = self.pool.take(count)
        assert (taken is None) == (count > free)
        for block in taken or ():
            self.content.pop(block, None)
        self.pool.release(taken or [])

    @invariant()
    def pool_is_sound(self):
        check_pool(self.pool, [holder.blocks for holder in self.holders])

    @invariant()
    def hits_are_counted(self):
        assert 0 <= self.pool.hits <= self.pool.queries


class PlainPoolMachine(PoolMachine):
    is_caching = False

    @invariant()
    def nothing_is_kept(self):
        assert self.pool.hits == 0
        held = {block for holder in self.holders for block in holder.blocks}
        assert self.pool.free == self.pool.total - len(held)


PoolMachine.TestCase.settings = settings(max_examples=120, deadline=None)
PlainPoolMachine.TestCase.settings = settings(max_examples=40, deadline=None)
TestPool = PoolMachine.TestCase
TestPlainPool = PlainPoolMachine.TestCase
