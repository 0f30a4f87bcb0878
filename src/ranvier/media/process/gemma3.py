"""Gemma 3: the picture squeezed into one square tile, or with pan and scan also crops of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from ranvier.core.errors import CheckpointError
from ranvier.media.process.pixels import HALF, Pixels, number, resize, switch
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["Gemma3"]

SIDE = 224
TOKENS = 256


@dataclass(frozen=True)
class Gemma3:
    """Tiles in order: the whole picture, then its crops."""

    pixels: Pixels
    height: int
    width: int
    is_scanning: bool
    crop_side_min: int
    crops_max: int
    ratio_min: float
    token_count: int
    adjustable: ClassVar[Mapping[str, Adjustable]] = {
        "do_pan_and_scan": Adjustable(),
        "pan_and_scan_min_crop_size": Adjustable(),
        "pan_and_scan_max_num_crops": Adjustable(),
        "pan_and_scan_min_ratio_to_activate": Adjustable(),
    }

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields = configs.image
        size = fields.get("size") or {"height": SIDE, "width": SIDE}
        ratio = fields.get("pan_and_scan_min_ratio_to_activate")
        if ratio is not None and (type(ratio) not in (int, float) or not ratio >= 1):
            raise CheckpointError("pan_and_scan_min_ratio_to_activate must be at least 1.")
        counts = {**configs.model, **configs.processor}
        return cls(
            Pixels.read(fields, resample=Image.Resampling.BILINEAR, mean=HALF, std=HALF),
            number(size, "height"),
            number(size, "width"),
            switch(fields, "do_pan_and_scan", False),
            number(fields, "pan_and_scan_min_crop_size", default=256),
            number(fields, "pan_and_scan_max_num_crops", default=4),
            1.2 if ratio is None else float(ratio),
            number(counts, "image_seq_length", "mm_tokens_per_image", default=TOKENS),
        )

    @property
    def units_max(self) -> int:
        return 1 + self.crops_max * self.is_scanning

    def prepare(self, picture: Image.Image) -> Prepared:
        crops = self._crops(picture) if self.is_scanning else []
        tiles = [
            self.pixels.normalise(resize(tile, self.height, self.width, self.pixels.resample))
            for tile in (picture, *crops)
        ]
        one = "\n\n<start_of_image><image_soft_token><end_of_image>\n\n"
        text = one
        if crops:
            further = " ".join([one] * len(crops))
            text = (
                f"Here is the original image {one} and here are some crops to help you see better "
                f"{further}"
            )
        count = len(tiles)
        return Prepared(
            np.stack(tiles),
            (1, 1, count),
            (picture.height, picture.width),
            text,
            (self.token_count,) * count,
        )

    def _crops(self, picture: Image.Image) -> list[Image.Image]:
        """Equal parts along the longer side; none for a picture that is nearly square or small."""
        long, short = max(picture.size), min(picture.size)
        if long / short < self.ratio_min:
            return []
        count = min(math.floor(long / self.crop_side_min), math.floor(long / short + 0.5))
        count = min(self.crops_max, max(2, count))
        step = math.ceil(long / count)
        if min(step, short) < self.crop_side_min:
            return []
        is_wide = picture.width >= picture.height
        boxes = []
        for start in range(0, count * step, step):
            stop = min(start + step, long)
            boxes.append((start, 0, stop, short) if is_wide else (0, start, short, stop))
        return [picture.crop(box) for box in boxes if box[2] > box[0] and box[3] > box[1]]
