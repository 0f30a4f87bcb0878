"""What a simulated step sees of a token: its id, or the picture's feature in the row it names.

A wrong row, a row that was given away or a picture cut in two is found by the token drawn from it.
"""

from __future__ import annotations

from ranvier.core.step import Chunk

__all__ = ["Feature", "Seen", "seen"]

Feature = tuple[bytes, int]
"""Digest of a picture, and which of its features."""
Seen = object
"""An id, or a tuple of what stands for it."""


def seen(chunk: Chunk, i: int, token: int, features: dict[int, Feature]) -> Seen:
    """What the i-th token of a chunk looks like to the layers."""
    media = chunk.media
    if media is None:
        return token
    count = len(chunk.token_ids)
    for entries in (media.feature_rows, media.sees_to, media.rope, media.cross_spans):
        assert len(entries) in (0, count), f"{len(entries)} entries for {count} tokens"
    row = media.feature_rows[i] if media.feature_rows else -1
    found: Seen = token if row < 0 else features[row]
    if media.sees_to:
        assert chunk.start + i <= media.sees_to[i] < chunk.start + count, "a picture is cut in two"
        assert row >= 0 or media.sees_to[i] == chunk.start + i
    if media.rope:
        found = (found, media.rope[i])
    if media.cross_spans:
        first, stop = media.cross_spans[i]
        assert 0 <= first <= stop <= len(media.cross_blocks)
        found = (found, tuple(features[block] for block in media.cross_blocks[first:stop]))
    return found
