"""The steps that the families share: resize, crop, rescale and normalise.

Equal to the reference bit for bit: Pillow resizes 8-bit pixels, and as a channel then has 256
values, rescaling (in f64, rounded to f32) and normalising (in f32) are one table a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.core.limits import LIMITS

__all__ = [
    "CLIP_MEAN", "CLIP_STD", "HALF", "Float32Array", "Pixels", "centre_crop", "number", "resize",
    "short_side_fit", "switch",
]  # fmt: skip

Float32Array = NDArray[np.float32]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
CHANNELS = 3
VALUES = 256


@dataclass(frozen=True)
class Pixels:
    """The numbers of a preprocessor's config that every family has."""

    resample: Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(
        cls,
        fields: Mapping[str, Any],
        *,
        resample: Image.Resampling,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> Pixels:
        """From preprocessor_config.json; the rest are the family's defaults. Raises."""
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if not switch(fields, name, True):
                raise CheckpointError(f"preprocessor_config.json: {name}=false is not supported.")
        try:
            return cls(
                Image.Resampling(_given(fields, "resample", resample)),
                float(_given(fields, "rescale_factor", 1 / 255)),
                _three(_given(fields, "image_mean", mean)),
                _three(_given(fields, "image_std", std)),
            )
        except (TypeError, ValueError):
            raise CheckpointError(
                "preprocessor_config.json: resample, rescale_factor, image_mean or image_std is "
                "not a number of its kind."
            ) from None

    def normalise(self, picture: Image.Image) -> Float32Array:
        """[3, height, width] f32."""
        pixels = np.asarray(picture)
        values = np.arange(VALUES, dtype=np.float64) * self.scale
        scaled = values.astype(np.float32)
        out = np.empty((CHANNELS, *pixels.shape[:2]), np.float32)
        for channel in range(CHANNELS):
            mean, std = np.float32(self.mean[channel]), np.float32(self.std[channel])
            np.take((scaled - mean) / std, pixels[..., channel], out=out[channel])
        return out


def resize(
    picture: Image.Image, height: int, width: int, resample: Image.Resampling
) -> Image.Image:
    """The picture at a size. Raises RequestError for one that no memory should be spent on."""
    if height * width > LIMITS.image_pixels_max:
        raise RequestError(
            f"The picture of {picture.width}x{picture.height} pixels becomes {width}x{height} for "
            f"this model: more than {LIMITS.image_pixels_max} pixels.",
            param="messages",
            hint="Its sides differ too much; crop it.",
        )
    return picture.resize((width, height), resample)


def short_side_fit(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `size`."""
    long = int(size * max(height, width) / min(height, width))
    return (long, size) if width <= height else (size, long)


def centre_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of a picture; black where it is smaller."""
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return picture.crop((left, top, left + width, top + height))


def number(fields: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of a mapping's positive whole numbers by these names. Raises CheckpointError."""
    for name in names:
        value = fields.get(name)
        if value is not None:
            if type(value) is not int or not 0 < value < 2**31:
                raise CheckpointError(
                    f"The image processor's {name} is {value!r}: no positive int."
                )
            return value
    if default is None:
        raise CheckpointError(f"The image processor's config has no {' or '.join(names)}.")
    return default


def switch(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean of a config, null being the default. Raises CheckpointError."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise CheckpointError(f"The image processor's {name} is {value!r}: not true or false.")
    return value


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    value = fields.get(name)
    return default if value is None else value


def _three(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != CHANNELS:
        raise ValueError
    return found
