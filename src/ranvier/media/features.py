"""FeatureRows: which picture's features lie in which rows of the device, and who still needs them.

Pure decisions; no device. A picture is held by the running sequences whose tokens still take it,
and stays for others until its rows are wanted, least recently used first. Invariants: a row is free
or one picture's; a held picture is never evicted; one that is not ready is held and pending.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ranvier.core.media import ImageItem, VisionInfo
from ranvier.media.place import PromptPictures, row_count

__all__ = ["FeatureRows"]


@dataclass(slots=True)
class _Entry:
    rows: list[int]
    users: int = 0
    is_ready: bool = False


class FeatureRows:
    """The rows of one device; without a VisionInfo there are none."""

    def __init__(self, vision: VisionInfo | None) -> None:
        self.queries = self.hits = 0
        self.pending: dict[bytes, ImageItem] = {}
        """Pictures to encode, in order."""
        self._vision = vision
        self._free = [] if vision is None else list(range(int(vision.is_cross), vision.rows))
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def rows(self, key: bytes) -> list[int]:
        return self._entries[key].rows

    def enter(self, pictures: PromptPictures | None, planned: int) -> bool:
        """Hold what the tokens from `planned` on need, all or nothing; whether there is room."""
        if pictures is None or self._vision is None:
            return True
        needed = pictures.needed(planned)
        sizes = {key: row_count(image, self._vision) for key, image in needed.items()}
        new = [key for key in needed if key not in self._entries]
        if not self._make_room(sum(sizes[key] for key in new), needed):
            return False
        for key, image in needed.items():
            if key in new:
                self._entries[key] = _Entry([self._free.pop() for _ in range(sizes[key])])
                self.pending[key] = image
            self._entries.move_to_end(key)
            self._entries[key].users += 1
            pictures.rows[key] = self._entries[key].rows
        self.queries += len(needed)
        self.hits += len(needed) - len(new)
        return True

    def leave(self, pictures: PromptPictures | None) -> None:
        """A sequence needs its pictures no more; what nobody has encoded for it is forgotten."""
        for key in pictures.rows if pictures else ():
            entry = self._entries[key]
            entry.users -= 1
            assert entry.users >= 0, key
            if not entry.users and not entry.is_ready:
                self._forget(key)
        if pictures:
            pictures.rows = {}

    def settle(self, pictures: PromptPictures | None, computed: int) -> None:
        """Let go of a sequence's pictures once their tokens are in its KV cache."""
        if pictures and pictures.rows and not pictures.needed(computed):
            self.leave(pictures)

    def grant(self, pictures: PromptPictures | None, start: int, count: int) -> int:
        """How many of `count` tokens from `start` can go, as pictures are ready and stay whole."""
        if pictures is None:
            return count
        stop = pictures.cut(start, start + count)
        touched = pictures.touched(start, stop)
        return stop - start if all(self._entries[key].is_ready for key in touched) else 0

    def encoded(self, key: bytes) -> None:
        """A pending picture's features are on their way to its rows."""
        del self.pending[key]
        self._entries[key].is_ready = True

    def forget_idle(self) -> None:
        """Empty the rows that no sequence holds."""
        for key in [key for key, entry in self._entries.items() if not entry.users]:
            self._forget(key)

    def _make_room(self, count: int, kept: dict[bytes, ImageItem]) -> bool:
        idle = [key for key, e in self._entries.items() if not e.users and key not in kept]
        if len(self._free) + sum(len(self._entries[key].rows) for key in idle) < count:
            return False
        for key in idle:
            if len(self._free) >= count:
                break
            self._forget(key)
        return True

    def _forget(self, key: bytes) -> None:
        self._free += self._entries.pop(key).rows
        self.pending.pop(key, None)
