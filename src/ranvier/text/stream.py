"""Detokenizer: ids to text piece by piece, whole characters only, stop strings held back.

Invariant: for every split of the ids the concatenated pieces are the same: the UTF-8 decoding of
the tokens' bytes, cut at the first stop string. U+FFFD comes out only where the bytes are no UTF-8.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from ranvier.core.sampling import SamplingParams
from ranvier.text.codec import TextCodec

__all__ = ["Detokenizer", "TextDelta"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text; `stop_string` is set when it ended there."""

    text: str
    stop_string: str | None = None


class Detokenizer:
    """Incremental decoding of one sequence.

    `before` are bytes that end the prompt inside a character: the output completes it. Stop strings
    count from the first token past params.min_tokens.
    """

    def __init__(self, codec: TextCodec, params: SamplingParams, *, before: bytes = b"") -> None:
        self._pieces = codec.pieces
        self._skip = params.skip_special_tokens
        self._stops = params.stop_strings
        self._keeps_stop = params.include_stop_str_in_output
        self._longest = max((len(stop) for stop in self._stops), default=1) - 1
        self._min_tokens = params.min_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(before)
        self._count = 0
        self._pending = ""
        self._is_over = False

    def feed(self, ids: list[int]) -> TextDelta:
        """Add ids; the text that is certain now."""
        if self._is_over:
            return TextDelta("")
        early = self._min_tokens - self._count
        self._count += len(ids)
        if not self._stops:
            return TextDelta(self._decode(ids))
        text = ""
        if early > 0:
            text, ids = self._pending + self._decode(ids[:early]), ids[early:]
            self._pending = ""
        self._pending += self._decode(ids)
        delta = self._release(is_last=False)
        return TextDelta(text + delta.text, delta.stop_string)

    def finish(self) -> TextDelta:
        """The rest of the text, incomplete characters included."""
        if self._is_over:
            return TextDelta("")
        self._pending += self._utf8.decode(b"", final=True)
        return self._release(is_last=True)

    def _decode(self, ids: list[int]) -> str:
        return self._utf8.decode(self._pieces.join(ids, skip_special_tokens=self._skip))

    def _release(self, *, is_last: bool) -> TextDelta:
        found = [(self._pending.find(s), s) for s in self._stops if s in self._pending]
        if found:
            at, stop = min(found)
            self._is_over = True
            end = at + len(stop) if self._keeps_stop else at
            return TextDelta(self._pending[:end], stop)
        cut = len(self._pending) - (0 if is_last else self._held())
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return TextDelta(text)

    def _held(self) -> int:
        """How many characters at the end may begin a stop string."""
        for length in range(min(self._longest, len(self._pending)), 0, -1):
            tail = self._pending[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
