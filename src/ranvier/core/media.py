"""What of pictures crosses between server, engine and device: declared types, msgpack-ready.

Pixels arrive here decoded and preprocessed. `VisionInfo` is what an artifact of a vision model
says of itself; everything is bounded by it. Knows nothing of jax, files or image formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["ImageItem", "PromptMedia", "VisionInfo"]


class ImageItem(msgspec.Struct, kw_only=True, frozen=True):
    """One picture of a prompt, ready for the encoder.

    `digest` is of the pixels and of the settings that made them: equal digests have equal features.
    `pixels` is f32 of `shape` in C order, as the family's reference processor gives it. Unit
    "patches": [P, values], or [1, 3, height, width] for a family without merged patches (Pixtral);
    unit "tiles": [tiles, 3, side, side].
    `grid` is (frames, rows, columns): of patches, or of the tiles that lie beside each other.
    `size` is the picture's own (height, width) before preprocessing.
    `spans` are (first placeholder, count) in the prompt, ascending; features fill them in order.
    """

    digest: bytes
    pixels: bytes
    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    size: tuple[int, int]
    spans: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        """The first placeholder token."""
        return self.spans[0][0]

    @property
    def token_count(self) -> int:
        """Features that the picture yields: one each placeholder."""
        return sum(count for _, count in self.spans)


class PromptMedia(msgspec.Struct, kw_only=True, frozen=True):
    """The pictures of a prompt, in its order.

    `rope` holds int32 [3, prompt tokens] (frame, row, column of the rotary embedding) for families
    with VisionInfo.has_rope_axes; token p behind the prompt is at (p + rope_delta) on each axis.
    """

    images: tuple[ImageItem, ...]
    rope: bytes = b""
    rope_delta: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionInfo:
    """The static limits of an artifact's encoder.

    `units` are the encoder's buckets in patches or tiles, ascending. A picture has at most
    units[-1]. `rows` is the size F of the feature buffer, or with `is_cross` the number of cross
    blocks of one tile each (0 is garbage, as with KV blocks); `images_max` bounds a prompt.
    `is_whole`: the placeholders of a picture see each other, so they come in one chunk.
    """

    family: str
    unit: Literal["patches", "tiles"]
    units: tuple[int, ...]
    rows: int
    images_max: int
    is_cross: bool = False
    is_whole: bool = False
    has_rope_axes: bool = False
