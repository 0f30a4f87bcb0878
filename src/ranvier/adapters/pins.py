"""Pins: which adapters keep their slots of the device, whatever else is asked for.

A name is pinned, and with it the content that it stands for; there are at most as many contents as
slots. Knows nothing of weights; the engine moves what is pinned into slots.
"""

from __future__ import annotations

from ranvier.core.errors import AdapterUnavailable, RequestError

__all__ = ["Pins"]


class Pins:
    """The pins of one engine with so many slots."""

    def __init__(self, slots: int) -> None:
        self.digests: frozenset[str] = frozenset()
        """Contents that leave their slots for no other."""
        self.unplaced: set[str] = set()
        """Those of them that are to be moved into a slot before a request asks for them."""
        self._slots = slots
        self._digest_of: dict[str, str] = {}

    @property
    def is_full(self) -> bool:
        """Whether every slot is pinned: no other adapter can run."""
        return len(self.digests) >= self._slots

    def has(self, name: str) -> bool:
        return name in self._digest_of

    def check(self, name: str, digest: str) -> None:
        """Raise RequestError when no slot is left to pin a name with this content."""
        others = {held for pin, held in self._digest_of.items() if pin != name} - {digest}
        if len(others) >= self._slots:
            raise RequestError(
                f"The adapter {name[:128]!r} can't be pinned: {len(others)} others are, and there "
                f"are {self._slots} slots.",
                param="pinned",
                hint="Unpin one, or start with a larger max_loras.",
            )

    def put(self, name: str, digest: str) -> None:
        """Pin a name. Requires: check has let it."""
        self._digest_of[name] = digest
        self._settle()

    def drop(self, name: str) -> None:
        """Unpin a name, whether or not it is pinned."""
        self._digest_of.pop(name, None)
        self._settle()

    def check_runs(self, name: str, digest: str) -> None:
        """Raise AdapterUnavailable when other adapters have every slot for good."""
        if self.is_full and digest not in self.digests:
            raise AdapterUnavailable(self.full_reason(name), param="model")

    def full_reason(self, name: str) -> str:
        """Why an adapter that is not pinned can't run."""
        return (
            f"The adapter {name[:128]!r} can't run: each of the {self._slots} slots has a pinned "
            "adapter. Unpin one, or start with a larger max_loras."
        )

    def _settle(self) -> None:
        before, self.digests = self.digests, frozenset(self._digest_of.values())
        self.unplaced = (self.unplaced | (self.digests - before)) & self.digests
