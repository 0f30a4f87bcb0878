"""Prepared: one picture as its family's processor left it, and ImageProcessor, what makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from PIL import Image

from ranvier.media.process.pixels import Float32Array

__all__ = ["Adjustable", "Configs", "ImageProcessor", "Prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """`values`, `grid` and `size` are as core.media.ImageItem says.

    `text` stands for the picture in the prompt, with the image token once a run; the i-th of them
    is repeated `runs[i]` times in the ids.
    """

    values: Float32Array
    grid: tuple[int, int, int]
    size: tuple[int, int]
    text: str
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Configs:
    """The model's config.json, its image processor's fields, and its processor's."""

    model: Mapping[str, Any]
    image: Mapping[str, Any]
    processor: Mapping[str, Any]

    @property
    def vision(self) -> Mapping[str, Any]:
        found = self.model.get("vision_config")
        return found if isinstance(found, Mapping) else {}


class Adjustable(NamedTuple):
    """A field that mm_processor_kwargs may set: the names within it, and what it outranks."""

    keys: tuple[str, ...] = ()
    outranks: tuple[str, ...] = ()


class ImageProcessor(Protocol):
    """The preprocessing of one family. `adjustable` are fields that mm_processor_kwargs may set."""

    adjustable: ClassVar[Mapping[str, Adjustable]]

    @property
    def units_max(self) -> int:
        """The most patches or tiles that any picture becomes."""
        ...

    @classmethod
    def read(cls, configs: Configs) -> Self:
        """From the model's files. Raises CheckpointError."""
        ...

    def prepare(self, picture: Image.Image) -> Prepared:
        """What the encoder takes of an RGB picture. Raises RequestError."""
        ...
