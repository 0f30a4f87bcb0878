"""TokenBytes: what each token adds to a text, as bytes.

Taken from the tokenizer's own decoder, token by token: a text is the concatenation of its tokens'
bytes, so that decoding costs a table look-up and does not depend on how the ids are split.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from ranvier.core.errors import CheckpointError

__all__ = ["TokenBytes"]

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SUPPORTED = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")


class TokenBytes:
    """Bytes by token id. Raises CheckpointError for a decoder that is not made of tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._steps = _steps(tokenizer)
        self._is_byte_level = any(step["type"] == "ByteLevel" for step in self._steps)
        self._is_spaced = not self._steps

    def __getitem__(self, token_id: int) -> bytes:
        """The token's bytes; none for an id without a token."""
        found = self._known.get(token_id)
        if found is None:
            token = self._tokenizer.id_to_token(token_id)
            found = self._known[token_id] = b"" if token is None else self._bytes(token)
        return found

    def join(self, ids: list[int], *, skip_special_tokens: bool) -> bytes:
        """The bytes of some tokens."""
        if skip_special_tokens and not self.special.isdisjoint(ids):
            ids = [i for i in ids if i not in self.special]
        return b"".join([self[i] for i in ids])

    def _bytes(self, token: str) -> bytes:
        if self._is_byte_level:
            values = [BYTES.get(char) for char in token]
            known = [value for value in values if value is not None]
            return bytes(known) if len(known) == len(values) else token.encode()
        for step in self._steps:
            if step["type"] == "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            elif step["type"] == "Metaspace":
                token = token.replace(step["replacement"], " ")
            elif step["type"] == "ByteFallback" and (match := BYTE_TOKEN.fullmatch(token)):
                return bytes([int(match[1], 16)])
        return (" " + token if self._is_spaced else token).encode()


def _steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's steps; none where tokens are words with spaces between."""
    if tokenizer.decoder is None:
        return []
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder.get("decoders") or [decoder]
    for step in steps:
        is_plain = step["type"] != "Replace" or "String" in step["pattern"]
        if step["type"] not in SUPPORTED or not is_plain:
            raise CheckpointError(
                f"tokenizer.json: decoder {step['type']!r} is not supported.",
                hint=f"Supported: {', '.join(SUPPORTED)}.",
            )
    return steps


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest follow 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [value for value in range(256) if value not in plain]
    found = {chr(value): value for value in plain}
    return {**found, **{chr(256 + i): value for i, value in enumerate(other)}}


BYTES = _byte_alphabet()
