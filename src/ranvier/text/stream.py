"""Detokenizer: ids to text piece by piece, whole characters only, stop strings held back.

Invariant: for every split of the ids the concatenated pieces equal the decoding of all of them, cut
at the first stop string.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.core.sampling import SamplingParams
from ranvier.text.codec import TextCodec

__all__ = ["Detokenizer", "TextDelta"]

REPLACEMENT = "\ufffd"
CONTEXT = 6
"""Ids kept before the new ones: what a decoder may look back at (spaces, byte runs)."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text; `stop_string` is set when it ended there."""

    text: str
    stop_string: str | None = None


class Detokenizer:
    """Incremental decoding of one sequence."""

    def __init__(self, codec: TextCodec, params: SamplingParams) -> None:
        self._codec = codec
        self._skip = params.skip_special_tokens
        self._stops = params.stop_strings
        self._keeps_stop = params.include_stop_str_in_output
        self._held = max((len(s) for s in self._stops), default=1) - 1
        self._ids: list[int] = []
        self._read = 0
        self._pending = ""
        self._is_over = False

    def feed(self, ids: list[int]) -> TextDelta:
        """Add ids; the text that is certain now."""
        if self._is_over:
            return TextDelta("")
        self._ids += ids
        self._pending += self._decode_new(is_last=False)
        return self._release(is_last=False)

    def finish(self) -> TextDelta:
        """The rest of the text, incomplete characters included."""
        if self._is_over:
            return TextDelta("")
        self._pending += self._decode_new(is_last=True)
        return self._release(is_last=True)

    def _decode_new(self, *, is_last: bool) -> str:
        """Text of the ids past `_read`, as far as it ends in a whole character."""
        if self._read == len(self._ids):
            return ""
        start = max(0, self._read - CONTEXT)
        before = self._decode(self._ids[start : self._read])
        after = self._decode(self._ids[start:])
        if after.endswith(REPLACEMENT) and not is_last:
            return ""
        self._read = len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._codec.decode(ids, skip_special_tokens=self._skip)

    def _release(self, *, is_last: bool) -> TextDelta:
        found = [(self._pending.find(s), s) for s in self._stops if s in self._pending]
        if found:
            at, stop = min(found)
            self._is_over = True
            end = at + len(stop) if self._keeps_stop else at
            return TextDelta(self._pending[:end], stop)
        cut = len(self._pending) if is_last else max(0, len(self._pending) - self._held)
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return TextDelta(text)
