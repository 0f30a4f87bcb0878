"""Options of pictures: how many, how they are prepared, where they may come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS

__all__ = ["PICTURES_DEFAULT", "MediaOptions", "check_media_options", "picture_limit"]

PICTURES_DEFAULT = 8
"""Pictures of one prompt."""
HINTS = ("width", "height")
"""What vLLM sizes its profiling run by; here every bucket is compiled."""


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """The engine's options of pictures, by vLLM's names."""

    limit_mm_per_prompt: dict[str, Any] | None = None
    """{"image": N} or {"image": {"count": N}}: pictures of one prompt, 8 by default; 0 leaves the
    encoder out of the build."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Fields of the image processor that replace the model's own, such as {"max_pixels": N}
    (docs/vision.md)."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts that pictures are fetched from (host, or host:port); none: data: URLs alone."""
    allowed_local_media_path: str | None = None
    """Folder below which file: URLs of pictures may lie; none: no files."""


def picture_limit(given: Mapping[str, Any] | None, say: Callable[[str], None] | None = None) -> int:
    """Pictures that a prompt may hold. Raises ConfigError."""
    limits = dict(given or {})
    count = limits.pop("image", PICTURES_DEFAULT)
    if isinstance(count, Mapping):
        count = _count(count, say)
    for name, value in limits.items():
        if name not in ("video", "audio") or value != 0:
            raise ConfigError(
                f"limit_mm_per_prompt: {name} is {value!r}; only pictures are served.",
                hint='Give {"image": N}.',
            )
    if type(count) is not int or not 0 <= count <= LIMITS.images_max:
        raise ConfigError(
            f"limit_mm_per_prompt: image must be an integer in [0, {LIMITS.images_max}], is "
            f"{count!r}."
        )
    return count


def _count(fields: Mapping[str, Any], say: Callable[[str], None] | None) -> Any:
    """Of vLLM's longer form."""
    for name in fields:
        if name not in ("count", *HINTS):
            raise ConfigError(
                f"limit_mm_per_prompt: image has no field {name!r}; known: count, width, height."
            )
        if name in HINTS and say is not None:
            say(f"limit_mm_per_prompt: {name} changes nothing: pictures of any size are compiled")
    return fields.get("count", PICTURES_DEFAULT)


def check_media_options(options: MediaOptions, say: Callable[[str], None]) -> None:
    """Raises ConfigError for values that cannot be."""
    picture_limit(options.limit_mm_per_prompt, say)
    folder = options.allowed_local_media_path
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"allowed_local_media_path: {folder}: no such folder.")
