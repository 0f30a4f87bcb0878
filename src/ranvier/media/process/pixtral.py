"""Pixtral: the whole picture in patches, a break behind each row of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image

from ranvier.media.process.clip import image_token
from ranvier.media.process.pixels import CLIP_MEAN, CLIP_STD, Pixels, number, resize
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["Pixtral"]


@dataclass(frozen=True)
class Pixtral:
    """One picture of whole patches, its longer side at most `long_side`."""

    pixels: Pixels
    long_height: int
    long_width: int
    patch: int
    merge: int
    token: str
    adjustable: ClassVar[Mapping[str, Adjustable]] = {
        "size": Adjustable(("longest_edge", "height", "width"))
    }

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields, given = configs.image, configs.processor
        size = fields.get("size") or {"longest_edge": 1024}
        return cls(
            Pixels.read(fields, resample=Image.Resampling.BICUBIC, mean=CLIP_MEAN, std=CLIP_STD),
            number(size, "longest_edge", "height"),
            number(size, "longest_edge", "width"),
            _side(given.get("patch_size") or fields.get("patch_size") or configs.vision),
            number({**configs.model, **given}, "spatial_merge_size", default=1),
            image_token(configs, "[IMG]"),
        )

    @property
    def units_max(self) -> int:
        unit = self.patch * self.merge
        features = math.ceil(self.long_height / unit) * math.ceil(self.long_width / unit)
        return features * self.merge**2

    def prepare(self, picture: Image.Image) -> Prepared:
        size = height, width = picture.height, picture.width
        ratio = max(height / self.long_height, width / self.long_width)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        unit = self.patch * self.merge
        rows, columns = (height - 1) // unit + 1, (width - 1) // unit + 1
        picture = resize(picture, rows * unit, columns * unit, self.pixels.resample)
        grid = (1, rows * self.merge, columns * self.merge)
        text = "[IMG_BREAK]".join([self.token] * rows) + "[IMG_END]"
        values = self.pixels.normalise(picture)[None]
        return Prepared(values, grid, size, text, (columns,) * rows)


def _side(patch: Any) -> int:
    """A patch's side from a number or {"height", "width"}."""
    fields = patch if isinstance(patch, dict) else {"patch_size": patch}
    return number(fields, "patch_size", "height")
