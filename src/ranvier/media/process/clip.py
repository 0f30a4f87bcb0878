"""Llava 1.5: one square crop, as CLIP's processor and LlavaImageProcessor make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image

from ranvier.core.errors import CheckpointError
from ranvier.media.process.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    Pixels,
    centre_crop,
    number,
    resize,
    short_side_fit,
    switch,
)
from ranvier.media.process.prepared import Adjustable, Configs, Prepared

__all__ = ["CropSize", "Llava", "feature_count", "image_token"]

SIDE = 224


@dataclass(frozen=True)
class CropSize:
    """`size` (short side, or height and width) and `crop_size` of a CLIP-like processor."""

    short: int | None
    height: int
    width: int
    crop: tuple[int, int] | None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> CropSize:
        size = fields.get("size")
        if isinstance(size, int) or size is None:
            size = {"shortest_edge": size or SIDE}
        crop = fields.get("crop_size")
        if isinstance(crop, int) or crop is None:
            crop = {"height": crop or SIDE, "width": crop or SIDE}
        is_cropping = switch(fields, "do_center_crop", True)
        cropped = (number(crop, "height"), number(crop, "width")) if is_cropping else None
        if "shortest_edge" in size:
            short = number(size, "shortest_edge")
            if cropped is None:
                raise CheckpointError(
                    "preprocessor_config.json: size.shortest_edge needs do_center_crop."
                )
            return cls(short, short, short, cropped)
        return cls(None, number(size, "height"), number(size, "width"), cropped)

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.crop or (self.height, self.width)

    def apply(self, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
        """The picture resized and cropped. Raises RequestError."""
        height, width = self.height, self.width
        if self.short is not None:
            height, width = short_side_fit(picture.height, picture.width, self.short)
        picture = resize(picture, height, width, resample)
        return picture if self.crop is None else centre_crop(picture, *self.crop)


@dataclass(frozen=True)
class Llava:
    """One tile a picture; each patch is a token."""

    pixels: Pixels
    sizes: CropSize
    is_squared: bool
    token: str
    token_count: int
    adjustable: ClassVar[Mapping[str, Adjustable]] = {}
    units_max: ClassVar[int] = 1

    @classmethod
    def read(cls, configs: Configs) -> Self:
        fields = configs.image
        pixels = Pixels.read(
            fields, resample=Image.Resampling.BICUBIC, mean=CLIP_MEAN, std=CLIP_STD
        )
        sizes = CropSize.read(fields)
        height, width = sizes.output
        return cls(
            pixels,
            sizes,
            switch(fields, "do_pad", False),
            image_token(configs, "<image>"),
            feature_count(configs, height, width),
        )

    def prepare(self, picture: Image.Image) -> Prepared:
        size = (picture.height, picture.width)
        if self.is_squared:
            picture = self._squared(picture)
        picture = self.sizes.apply(picture, self.pixels.resample)
        values = self.pixels.normalise(picture)[None]
        return Prepared(values, (1, 1, 1), size, self.token, (self.token_count,))

    def _squared(self, picture: Image.Image) -> Image.Image:
        """On a square of the mean colour."""
        side = max(picture.size)
        red, green, blue = (int(mean * 255) for mean in self.pixels.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square


def image_token(configs: Configs, default: str) -> str:
    """The token that stands for a picture in prompts of this model."""
    found = configs.processor.get("image_token")
    return found if isinstance(found, str) and found else default


def feature_count(configs: Configs, height: int, width: int) -> int:
    """Tokens of one tile: its patches, and the class token where the encoder's is kept."""
    given, vision = configs.processor, configs.vision
    patch = number({**vision, **_set(given, "patch_size")}, "patch_size")
    has_class = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
    extra = given.get("num_additional_image_tokens")
    extra = int(has_class) if type(extra) is not int else extra
    strategy = given.get("vision_feature_select_strategy") or configs.model.get(
        "vision_feature_select_strategy", "default"
    )
    dropped = 1 if strategy == "default" else 0
    return (height // patch) * (width // patch) + extra - dropped


def _set(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return {} if value is None else {name: value}
