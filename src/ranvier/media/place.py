"""PromptPictures: where the pictures of one sequence lie, and what a chunk of it takes of them.

Facts of one prompt within one model's VisionInfo; which rows a picture has is decided by
media/features. Cross attention as in the reference: a token attends to the pictures before it
that follow each other directly, up to the nearest one.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

import numpy as np

from ranvier.core.media import ImageItem, PromptMedia, VisionInfo
from ranvier.core.step import ChunkMedia

__all__ = ["PromptPictures", "row_count"]

MARK_BITS = 192
"""Above every token id: a mark stands for a picture in what prefixes are compared by."""


def row_count(image: ImageItem, vision: VisionInfo) -> int:
    """Rows that a picture's features take: one a tile where text attends to them, else a token."""
    return image.shape[0] if vision.is_cross else image.token_count


class PromptPictures:
    """The pictures of one prompt. `keys` name them: equal keys have equal features.

    The salt is part of a key, so that who salts its prefixes shares no features either.
    """

    def __init__(self, media: PromptMedia, vision: VisionInfo, salt: str) -> None:
        self.images = media.images
        self.keys = [image.digest + salt.encode() for image in media.images]
        self.stops = [max(first + count for first, count in i.spans) for i in media.images]
        self.rows: dict[bytes, list[int]] = {}
        """Where the features lie of those that are held."""
        self._vision = vision
        self._spans: list[tuple[int, int, int, bytes]] = []
        for key, image in zip(self.keys, media.images, strict=True):
            done = 0
            for first, count in image.spans:
                self._spans.append((first, count, done, key))
                done += count
        self._rope = np.frombuffer(media.rope, np.int32).reshape(3, -1).T
        self._rope_delta = media.rope_delta
        self._starts = [image.start for image in media.images]
        tiles = [0, *accumulate(row_count(image, vision) for image in media.images)]
        self._seen = _seen(self._starts, tiles)

    @property
    def marks(self) -> dict[int, int]:
        """A picture's digest for the id of its first token: prefixes are equal where these are.

        A chain of blocks covers what comes before, so that one mark a picture is enough.
        """
        return {i.start: int.from_bytes(i.digest) + (1 << MARK_BITS) for i in self.images}

    def needed(self, planned: int) -> dict[bytes, ImageItem]:
        """Pictures that the tokens from position `planned` on still take, by their keys."""
        return {
            key: image
            for key, image, stop in zip(self.keys, self.images, self.stops, strict=True)
            if self._vision.is_cross or stop > planned
        }

    def touched(self, start: int, stop: int) -> set[bytes]:
        """Keys of the pictures that tokens `start` .. `stop`-1 take."""
        if self._vision.is_cross:
            return {key for key, first in zip(self.keys, self._starts, strict=True) if first < stop}
        return {key for first, n, _, key in self._spans if first < stop and start < first + n}

    def cut(self, start: int, stop: int) -> int:
        """Where a chunk from `start` that may go up to `stop` ends, as no picture is cut in two."""
        if self._vision.is_whole:
            for first, count, _, _ in self._spans:
                if first < stop < first + count:
                    return max(first, start)
        return stop

    def chunk(self, start: int, count: int) -> ChunkMedia | None:
        """What `count` tokens from `start` on take of the pictures that are held."""
        positions, rows = range(start, start + count), self.rows
        if self._vision.is_cross:
            return ChunkMedia(
                cross_blocks=[row for key in self.keys for row in rows[key]],
                cross_spans=[self._seen[bisect_right(self._starts, p)] for p in positions],
            )
        feature_rows, sees_to = [-1] * count, list(positions)
        for first, n, at, key in self._spans:
            for p in range(max(first, start), min(first + n, start + count)):
                feature_rows[p - start] = rows[key][at + p - first]
                sees_to[p - start] = first + n - 1
        has_pictures = max(feature_rows) >= 0
        rope = [self._axes(p) for p in positions] if self._vision.has_rope_axes else []
        if not has_pictures and not rope:
            return None
        return ChunkMedia(
            feature_rows=feature_rows if has_pictures else [],
            sees_to=sees_to if has_pictures and self._vision.is_whole else [],
            rope=rope,
        )

    def _axes(self, position: int) -> tuple[int, int, int]:
        if position < len(self._rope):
            frame, row, column = self._rope[position].tolist()
            return frame, row, column
        behind = position + self._rope_delta
        return behind, behind, behind


def _seen(starts: list[int], tiles: list[int]) -> list[tuple[int, int]]:
    """By the count of pictures up to a token: the tiles that it attends to."""
    seen, first = [(0, 0)], 0
    for i, (_, stop) in enumerate(pairwise(tiles)):
        if i and starts[i] != starts[i - 1] + 1:
            first = tiles[i]
        seen.append((first, stop))
    return seen
