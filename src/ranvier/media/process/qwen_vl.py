"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches of a picture at nearly its own size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.media.process.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    Float32Array,
    Pixels,
    number,
    resize,
)
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["QwenVl"]

RATIO_MAX = 200
PIXELS_MIN = 56 * 56
PIXELS_MAX = 28 * 28 * 1280


@dataclass(frozen=True)
class QwenVl:
    """Patches in the order of the merger: squares of merge x merge, row by row."""

    pixels: Pixels
    pixels_min: int
    pixels_max: int
    patch: int
    frames: int
    merge: int
    token: str
    adjustable: ClassVar[Mapping[str, Adjustable]] = {
        "min_pixels": Adjustable(),
        "max_pixels": Adjustable(),
        "size": Adjustable(("shortest_edge", "longest_edge"), ("min_pixels", "max_pixels")),
    }

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields = configs.image
        size = fields.get("size") or {}
        defaults = (None, None) if size else (PIXELS_MIN, PIXELS_MAX)
        low = number({**size, **fields}, "min_pixels", "shortest_edge", default=defaults[0])
        high = number({**size, **fields}, "max_pixels", "longest_edge", default=defaults[1])
        if low > high:
            raise CheckpointError(
                f"The image processor's min_pixels {low} exceed max_pixels {high}."
            )
        return cls(
            Pixels.read(fields, resample=Image.Resampling.BICUBIC, mean=CLIP_MEAN, std=CLIP_STD),
            low,
            high,
            number(fields, "patch_size", default=14),
            number(fields, "temporal_patch_size", default=2),
            number(fields, "merge_size", default=2),
            "<|image_pad|>",
        )

    @property
    def units_max(self) -> int:
        return max(self.pixels_max // self.patch**2, self.merge**2)

    def prepare(self, picture: Image.Image) -> Prepared:
        size = (picture.height, picture.width)
        height, width = self._fit(*size)
        values = self.pixels.normalise(resize(picture, height, width, self.pixels.resample))
        rows, columns = height // self.patch, width // self.patch
        count = rows * columns // self.merge**2
        return Prepared(
            self._patches(values, rows, columns), (1, rows, columns), size, self.token, (count,)
        )

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size in whole merged patches, its pixels within bounds."""
        if max(height, width) / min(height, width) > RATIO_MAX:
            raise RequestError(
                f"The picture is {width}x{height} pixels; one side may be at most {RATIO_MAX} "
                "times the other.",
                param="messages",
            )
        unit = self.patch * self.merge
        fit_height, fit_width = round(height / unit) * unit, round(width / unit) * unit
        if fit_height * fit_width > self.pixels_max:
            shrink = math.sqrt((height * width) / self.pixels_max)
            fit_height = max(unit, math.floor(height / shrink / unit) * unit)
            fit_width = max(unit, math.floor(width / shrink / unit) * unit)
        elif fit_height * fit_width < self.pixels_min:
            grow = math.sqrt(self.pixels_min / (height * width))
            fit_height = math.ceil(height * grow / unit) * unit
            fit_width = math.ceil(width * grow / unit) * unit
        return fit_height, fit_width

    def _patches(self, values: Float32Array, rows: int, columns: int) -> Float32Array:
        """[rows * columns, 3 * frames * patch * patch]; a still picture fills every frame."""
        merge, patch = self.merge, self.patch
        squares = values.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        ordered = squares.transpose(1, 4, 2, 5, 0, 3, 6)
        repeated = np.repeat(ordered[..., None, :, :], self.frames, axis=5)
        return repeated.reshape(rows * columns, -1)
