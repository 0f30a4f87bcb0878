"""Llama 3.2 Vision: the best canvas of tiles, the picture in its upper left corner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from ranvier.core.errors import CheckpointError
from ranvier.media.process.clip import image_token
from ranvier.media.process.pixels import HALF, Pixels, number, resize
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["Mllama"]

SIDE = 224
TILES_MAX = 16


@dataclass(frozen=True)
class Mllama:
    """Tiles row by row. Text attends to them: the prompt holds one token a picture."""

    pixels: Pixels
    side: int
    tiles_max: int
    token: str
    adjustable: ClassVar[Mapping[str, Adjustable]] = {"max_image_tiles": Adjustable()}

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields = configs.image
        size = fields.get("size") or {"height": SIDE, "width": SIDE}
        side, width = number(size, "height"), number(size, "width")
        known = number(configs.vision, "max_num_tiles", default=4)
        tiles = number(fields, "max_image_tiles", default=known)
        if side != width or tiles > min(known, TILES_MAX):
            raise CheckpointError(
                f"The image processor's tiles of {side}x{width} pixels must be square, and its "
                f"max_image_tiles {tiles} at most {min(known, TILES_MAX)}."
            )
        return cls(
            Pixels.read(fields, resample=Image.Resampling.BILINEAR, mean=HALF, std=HALF),
            side,
            tiles,
            image_token(configs, "<|image|>"),
        )

    @property
    def units_max(self) -> int:
        return self.tiles_max

    def prepare(self, picture: Image.Image) -> Prepared:
        size, side = (picture.height, picture.width), self.side
        rows, columns = self._canvas(*size)
        height, width = self._inside(size, (rows * side, columns * side))
        canvas = Image.new("RGB", (columns * side, rows * side))
        canvas.paste(resize(picture, height, width, self.pixels.resample))
        values = self.pixels.normalise(canvas).reshape(3, rows, side, columns, side)
        tiles = np.ascontiguousarray(values.transpose(1, 3, 0, 2, 4))
        return Prepared(
            tiles.reshape(rows * columns, 3, side, side), (1, rows, columns), size, self.token, (1,)
        )

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns): the least upscaling, else the least downscaling, then the least area."""
        count = range(1, self.tiles_max + 1)
        shapes = [(a, b) for a in count for b in count if a * b <= self.tiles_max]
        scales = {(a, b): min(a * self.side / height, b * self.side / width) for a, b in shapes}
        growing = [scale for scale in scales.values() if scale >= 1]
        best = min(growing) if growing else max(scales.values())
        return min((s for s in shapes if scales[s] == best), key=lambda s: s[0] * s[1])

    def _inside(self, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
        """The picture's size on the canvas: as it is, but at least one tile and at most all."""
        height = min(max(size[0], self.side), canvas[0])
        width = min(max(size[1], self.side), canvas[1])
        scale_height, scale_width = height / size[0], width / size[1]
        if scale_width < scale_height:
            return min(math.floor(size[0] * scale_width) or 1, height), width
        return height, min(math.floor(size[1] * scale_height) or 1, width)
