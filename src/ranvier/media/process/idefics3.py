"""Idefics3 and SmolVLM: a grid of square tiles and the whole picture in one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from ranvier.media.process.pixels import HALF, Pixels, number, resize, switch
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["Idefics3"]

LONG_SIDE_MAX = 4096
TILE = 364
AROUND, IMAGE, GLOBAL = "<fake_token_around_image>", "<image>", "<global-img>"


@dataclass(frozen=True)
class Idefics3:
    """Tiles in order: the grid's rows, then the whole picture; a small picture is one tile."""

    pixels: Pixels
    long_side: int
    side: int
    is_splitting: bool
    token_count: int
    adjustable: ClassVar[Mapping[str, Adjustable]] = {
        "size": Adjustable(("longest_edge",)),
        "do_image_splitting": Adjustable(),
    }

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields, vision = configs.image, configs.vision
        side = number(fields.get("max_image_size") or {}, "longest_edge", default=TILE)
        count = configs.processor.get("image_seq_len")
        if count is None:
            per_side = side // number(vision, "patch_size")
            count = per_side**2 // number(configs.model, "scale_factor", default=2) ** 2
        return cls(
            Pixels.read(fields, resample=Image.Resampling.LANCZOS, mean=HALF, std=HALF),
            number(fields.get("size") or {}, "longest_edge", default=4 * TILE),
            side,
            switch(fields, "do_image_splitting", True),
            number({"image_seq_len": count}, "image_seq_len"),
        )

    @property
    def units_max(self) -> int:
        per_side = math.ceil(min(self.long_side, LONG_SIDE_MAX) / self.side)
        return 1 + per_side**2 if self.is_splitting and per_side > 1 else 1

    def prepare(self, picture: Image.Image) -> Prepared:
        size, side = (picture.height, picture.width), self.side
        picture = self._resized(picture, *self._bounded(*size))
        rows = columns = 1
        tiles: list[Image.Image] = []
        if self.is_splitting:
            height, width = self._in_tiles(picture.height, picture.width)
            picture = self._resized(picture, height, width)
            rows, columns = height // side, width // side
        if rows * columns > 1:
            tiles = [
                picture.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
                for y in range(rows)
                for x in range(columns)
            ]
        tiles.append(self._resized(picture, side, side))
        values = np.stack([self.pixels.normalise(tile) for tile in tiles])
        text = _text(rows, columns)
        return Prepared(values, (1, rows, columns), size, text, (self.token_count,) * len(tiles))

    def _resized(self, picture: Image.Image, height: int, width: int) -> Image.Image:
        return resize(picture, height, width, self.pixels.resample)

    def _bounded(self, height: int, width: int) -> tuple[int, int]:
        """The longer side at `long_side`, the other even, and neither beyond LONG_SIDE_MAX."""
        ratio = width / height
        if width >= height:
            width = self.long_side
            height = int(width / ratio)
            height += height % 2
        else:
            height = self.long_side
            width = int(height * ratio)
            width += width % 2
        height, width = max(height, 1), max(width, 1)
        ratio = width / height
        if width >= height and width > LONG_SIDE_MAX:
            width = LONG_SIDE_MAX
            height = int(width / ratio)
        elif height > width and height > LONG_SIDE_MAX:
            height = LONG_SIDE_MAX
            width = int(height * ratio)
        return max(height, 1), max(width, 1)

    def _in_tiles(self, height: int, width: int) -> tuple[int, int]:
        """Both sides up to whole tiles, the longer one first."""
        ratio, side = width / height, self.side
        if width >= height:
            width = math.ceil(width / side) * side
            height = math.ceil(int(width / ratio) / side) * side
        else:
            height = math.ceil(height / side) * side
            width = math.ceil(int(height * ratio) / side) * side
        return height, width


def _text(rows: int, columns: int) -> str:
    whole = f"{AROUND}{GLOBAL}{IMAGE}{AROUND}"
    if rows * columns == 1:
        return whole
    lines = [
        "".join(f"{AROUND}<row_{y}_col_{x}>{IMAGE}" for x in range(1, columns + 1)) + "\n"
        for y in range(1, rows + 1)
    ]
    return "".join(lines) + "\n" + whole
