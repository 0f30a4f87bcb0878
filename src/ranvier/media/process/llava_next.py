"""Llava-Next: the whole picture in one tile, and its best fit into a grid of tiles ("anyres")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ranvier.core.errors import CheckpointError
from ranvier.media.process.clip import CropSize, feature_count, image_token
from ranvier.media.process.pixels import CLIP_MEAN, CLIP_STD, Pixels, number, resize
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["LlavaNext"]

Size = tuple[int, int]
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
PINPOINTS_MAX = 256


@dataclass(frozen=True)
class LlavaNext:
    """Tiles in order: the whole picture, then the grid's rows. Padding yields no tokens."""

    pixels: Pixels
    sizes: CropSize
    pinpoints: tuple[Size, ...]
    side: int
    patch: int
    token: str
    base_count: int
    adjustable: ClassVar[Mapping[str, Adjustable]] = {}

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields = configs.image
        pixels = Pixels.read(
            fields, resample=Image.Resampling.BICUBIC, mean=CLIP_MEAN, std=CLIP_STD
        )
        sizes = CropSize.read(fields)
        side = sizes.output[0]
        patch = configs.processor.get("patch_size")
        return cls(
            pixels,
            sizes,
            _pinpoints(fields.get("image_grid_pinpoints"), side),
            side,
            number(configs.vision, "patch_size") if patch is None else patch,
            image_token(configs, "<image>"),
            feature_count(configs, *sizes.output),
        )

    @property
    def units_max(self) -> int:
        return 1 + max(height * width for height, width in self.pinpoints) // self.side**2

    def prepare(self, picture: Image.Image) -> Prepared:
        size, resample = (picture.height, picture.width), self.pixels.resample
        best = self._best(size)
        whole = resize(picture, self.sizes.height, self.sizes.width, resample)
        canvas = Image.new("RGB", (best[1], best[0]))
        height, width = _inside(size, best)
        left, top = (best[1] - width) // 2, (best[0] - height) // 2
        canvas.paste(resize(picture, height, width, resample), (left, top))
        rows, columns = best[0] // self.side, best[1] // self.side
        tiles = [whole, *_tiles(canvas, rows, columns, self.side)]
        values = np.stack(
            [self.pixels.normalise(self.sizes.apply(tile, resample)) for tile in tiles]
        )
        count = self.base_count + self._grid_count(size, rows, columns)
        return Prepared(values, (1, rows, columns), size, self.token, (count,))

    def _best(self, size: Size) -> Size:
        """The pinpoint that keeps most of the picture, then the one that wastes least."""
        height, width = size
        kept_most, wasted_least, best = 0, math.inf, self.pinpoints[0]
        for point in self.pinpoints:
            scale = min(point[1] / width, point[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = point[0] * point[1] - kept
            if kept > kept_most or (kept == kept_most and wasted < wasted_least):
                kept_most, wasted_least, best = kept, wasted, point
        return best

    def _grid_count(self, size: Size, rows: int, columns: int) -> int:
        """Features of the grid without its padding, and one new line a row."""
        per_tile = self.side // self.patch
        height, width = per_tile * rows, per_tile * columns
        if size[1] / size[0] > width / height:
            height -= (height - int(round(size[0] * (width / size[1]), 7))) // 2 * 2
        else:
            width -= (width - int(round(size[1] * (height / size[0]), 7))) // 2 * 2
        return height * width + height


def _inside(size: Size, target: Size) -> Size:
    """The size within `target` that keeps the picture's shape."""
    scale_width, scale_height = target[1] / size[1], target[0] / size[0]
    if scale_width < scale_height:
        return min(math.ceil(size[0] * scale_width), target[0]), target[1]
    return target[0], min(math.ceil(size[1] * scale_height), target[1])


def _tiles(canvas: Image.Image, rows: int, columns: int, side: int) -> list[Image.Image]:
    return [
        canvas.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        for y in range(rows)
        for x in range(columns)
    ]


def _pinpoints(given: Any, side: int) -> tuple[Size, ...]:
    """(height, width) of each grid, multiples of a tile's side. Raises CheckpointError."""
    points: Any = PINPOINTS if given is None else given
    is_list = isinstance(points, (list, tuple)) and 0 < len(points) <= PINPOINTS_MAX
    if is_list and all(_is_grid(point, side) for point in points):
        return tuple((point[0], point[1]) for point in points)
    raise CheckpointError(
        f"preprocessor_config.json: image_grid_pinpoints must be pairs of multiples of {side}, the "
        "tile's side."
    )


def _is_grid(point: Any, side: int) -> bool:
    is_pair = isinstance(point, (list, tuple)) and len(point) == 2
    return is_pair and all(type(n) is int and n >= side and not n % side for n in point)
