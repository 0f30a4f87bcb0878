"""Router: which replica takes a request. Pure decisions over what was sent where.

One rule: the replica that has the least work left, counting what its prefix cache saves. Work is in
prompt tokens: those that are not cached there, and a fixed price for each sequence. What a replica
has cached is not asked but remembered, in blocks, as many as it has, oldest forgotten first.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

from ranvier.core.request import Request

__all__ = ["SEQUENCE_TOKENS", "Router"]

SEQUENCE_TOKENS = 32
"""Prompt tokens that take a replica as long as one running sequence delays the others."""


@dataclass
class _Replica:
    """What is known of one replica. `open` is the work of each request that it has."""

    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    open: dict[str, int] = field(default_factory=dict)
    work: int = 0
    is_lost: bool = False
    last: int = 0


class Router:
    """Chooses among `count` replicas of `block_count` blocks of `block_tokens` tokens each."""

    def __init__(self, count: int, *, block_tokens: int, block_count: int) -> None:
        self._replicas = [_Replica() for _ in range(count)]
        self._block_tokens = block_tokens
        self._block_count = block_count
        self._key = os.urandom(16)
        self._turn = 0

    def choose(self, request: Request) -> int:
        """The replica for a request, which is open there from now on. Raises LookupError."""
        chain = self._chain(request)
        best, best_rank = -1, (0, 0, 0)
        for index, replica in enumerate(self._replicas):
            if replica.is_lost:
                continue
            work = self._work(request, self._matched(replica, chain))
            rank = (replica.work + work, len(replica.open), replica.last)
            if best < 0 or rank < best_rank:
                best, best_rank = index, rank
        if best < 0:
            raise LookupError("no replica is left")
        self._enter(self._replicas[best], request, chain)
        return best

    def end(self, index: int, request_id: str) -> None:
        """A request has ended, for whatever reason."""
        replica = self._replicas[index]
        replica.work -= replica.open.pop(request_id, 0)

    def mark(self, index: int, *, is_lost: bool) -> None:
        """Whether a replica is gone or stuck: nothing goes there while it is."""
        self._replicas[index].is_lost = is_lost

    def renew(self, index: int) -> None:
        """A replica has a successor, which has nothing in its prefix cache."""
        self._replicas[index].blocks.clear()

    def forget(self) -> None:
        """The replicas' prefix caches were emptied."""
        for replica in self._replicas:
            replica.blocks.clear()

    def work(self, index: int) -> int:
        """What a replica has to do, in prompt tokens."""
        return self._replicas[index].work

    def _enter(self, replica: _Replica, request: Request, chain: list[bytes]) -> None:
        work = self._work(request, self._matched(replica, chain))
        replica.open[request.request_id] = work
        replica.work += work
        self._turn += 1
        replica.last = self._turn
        for digest in reversed(chain):  # the head of a chain is forgotten last
            replica.blocks[digest] = None
            replica.blocks.move_to_end(digest)
        while len(replica.blocks) > self._block_count:
            replica.blocks.popitem(last=False)

    def _work(self, request: Request, matched: int) -> int:
        tokens = len(request.prompt_token_ids) - matched * self._block_tokens
        return tokens + SEQUENCE_TOKENS * request.params.sequence_count

    def _matched(self, replica: _Replica, chain: list[bytes]) -> int:
        """Leading blocks of a chain that a replica has."""
        count = 0
        while count < len(chain) and chain[count] in replica.blocks:
            count += 1
        return count

    def _chain(self, request: Request) -> list[bytes]:
        """A digest for each whole block of the prompt, of it and all before it."""
        data = array("i", request.prompt_token_ids).tobytes()
        size = self._block_tokens * 4
        digest, found = request.cache_salt.encode(), []
        for start in range(0, len(data) - size + 1, size):
            part = digest + data[start : start + size]
            digest = hashlib.blake2b(part, digest_size=16, key=self._key).digest()
            found.append(digest)
        return found
