"""From options to the bounds of a build's encoder: pictures of a prompt, and its buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ranvier.build.vision.encoders import resolve_vision, units_of_patches, without_pictures
from ranvier.build.vision.padding import with_stored_padding
from ranvier.cli.neuron import bucket_request
from ranvier.cli.options.settings import Options, bucket_lists, say
from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS
from ranvier.core.media import VisionInfo
from ranvier.models.spec import DecoderSpec
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["PICTURES_DEFAULT", "of_pictures", "picture_limit", "vision_of"]

PICTURES_DEFAULT = 8
"""Pictures of one prompt."""


def picture_limit(given: Mapping[str, Any] | None) -> int:
    """Pictures that a prompt may hold. Raises ConfigError."""
    limits = dict(given or {})
    count = limits.pop("image", PICTURES_DEFAULT)
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


def of_pictures(options: Options, spec: DecoderSpec, checkpoint: Checkpoint) -> DecoderSpec:
    """The model as it is built: without its encoder where a prompt holds no pictures."""
    if not picture_limit(options.limit_mm_per_prompt):
        return without_pictures(spec)
    stored = with_stored_padding(spec, checkpoint)
    if stored != spec and stored.vision is not None:
        say(
            "this checkpoint tells tiles of padding apart: every picture is encoded as "
            f"{stored.vision.units[-1]} tiles, however few it has"
        )
    return stored


def vision_of(options: Options, spec: DecoderSpec, model_len_max: int) -> VisionInfo | None:
    """The bounds of the encoder; None where there is none. Raises ConfigError."""
    if spec.vision is None:
        return None
    limit = picture_limit(options.limit_mm_per_prompt)
    listed = bucket_request(
        options.additional_config, options.override_neuron_config, bucket_lists()
    ).pictures
    units: tuple[int, ...] = ()
    if listed is not None:
        units = units_of_patches(spec.vision, listed.sizes)
        say(f"{listed.key}: encode programs of {list(units)} {spec.vision.unit}")
    return resolve_vision(spec, model_len_max, limit, units)
