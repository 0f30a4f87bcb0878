"""Blocks of KV memory: who owns which, and which full ones may be reused.

Pure decisions; no device. Invariants: block 0 is never given out; a block's reference count is the
number of sequences that list it; a block is in exactly one of: referenced, free, cached and idle.
A cached block is found again by a keyed hash of its chain of tokens, and its tokens are compared in
full, so a collision can't share memory between prompts.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from dataclasses import dataclass

__all__ = ["BlockPool", "block_count"]

ROOT = b""


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: bytes
    tokens: tuple[int, ...]


def block_count(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


class BlockPool:
    """Reference-counted blocks 1 .. count-1 with a cache of full blocks, oldest evicted first."""

    def __init__(self, count: int, block_tokens: int, *, is_caching: bool) -> None:
        self.block_tokens = block_tokens
        self.total = count - 1
        self.queries = 0
        self.hits = 0
        self._is_caching = is_caching
        self._key = os.urandom(16)
        self._free = deque(range(1, count))
        self._references = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._entry_of: dict[int, _Entry] = {}

    @property
    def free(self) -> int:
        """Blocks that can be given out now, idle cached ones included."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """Give out `count` blocks, or None when there are too few."""
        if count > self.free:
            return None
        return [self._take_one() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Drop one reference of each block; the last blocks of a chain become idle first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, block
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def lookup(self, tokens: list[int], salt: str) -> tuple[list[int], bytes]:
        """Take the longest cached prefix of `tokens`, never all of them; (blocks, chain digest)."""
        if not self._is_caching:
            return [], ROOT
        blocks: list[int] = []
        digest = self._start(salt)
        size = self.block_tokens
        for start in range(0, len(tokens) - size, size):
            part = tuple(tokens[start : start + size])
            following = self._chain(digest, part)
            block = self._block_of.get(following)
            if block is None or self._entry_of[block] != _Entry(digest, part):
                break
            self._reference(block)
            blocks.append(block)
            digest = following
        self.queries += len(tokens)
        self.hits += len(blocks) * size
        return blocks, digest

    def remember(self, block: int, digest: bytes, tokens: tuple[int, ...], salt: str) -> bytes:
        """Enter a full, computed block behind the chain `digest`; the new chain digest."""
        if not self._is_caching:
            return ROOT
        digest = digest or self._start(salt)
        following = self._chain(digest, tokens)
        if following not in self._block_of and block not in self._digest_of:
            self._block_of[following] = block
            self._digest_of[block] = following
            self._entry_of[block] = _Entry(digest, tokens)
        return following

    def forget_all(self) -> None:
        """Empty the cache; referenced blocks stay with their sequences."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._digest_of.clear()
        self._entry_of.clear()

    def _take_one(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
            del self._entry_of[block]
        self._references[block] = 1
        return block

    def _reference(self, block: int) -> None:
        self._idle.pop(block, None)
        self._references[block] += 1

    def _start(self, salt: str) -> bytes:
        return self._chain(b"salt:" + salt.encode(), ())

    def _chain(self, digest: bytes, tokens: tuple[int, ...]) -> bytes:
        return hashlib.blake2b(
            digest + repr(tokens).encode(), digest_size=16, key=self._key
        ).digest()
