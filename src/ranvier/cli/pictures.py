"""From options to the bounds of a build's encoder: pictures of a prompt, and its buckets."""

from __future__ import annotations

from typing import Any

from ranvier.build.vision.encoders import resolve_vision, units_of_patches, without_pictures
from ranvier.build.vision.padding import with_stored_padding
from ranvier.cli.neuron import bucket_request
from ranvier.cli.options.media import picture_limit
from ranvier.cli.options.settings import Options, bucket_lists, say
from ranvier.core.errors import CheckpointError, ConfigError, RequestError
from ranvier.core.media import VisionInfo
from ranvier.media.process.prepared import Configs
from ranvier.media.process.table import FAMILIES
from ranvier.media.vision import check_kwargs
from ranvier.models.spec import DecoderSpec, VisionSpec
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["of_pictures", "vision_of"]


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
    kwargs = options.mm_processor_kwargs or {}
    if spec.vision is None:
        if kwargs:
            raise ConfigError("mm_processor_kwargs: this build takes no pictures.")
        return None
    limit = picture_limit(options.limit_mm_per_prompt)
    listed = bucket_request(
        options.additional_config, options.override_neuron_config, bucket_lists()
    ).pictures
    units = _units(spec.vision, kwargs)
    if listed is not None:
        units = units_of_patches(spec.vision, listed.sizes)
        say(f"{listed.key}: encode programs of {list(units)} {spec.vision.unit}")
    return resolve_vision(spec, model_len_max, limit, units)


def _units(vision: VisionSpec, kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Buckets that mm_processor_kwargs need beyond the model's own. Raises ConfigError."""
    processor = FAMILIES[vision.family].processor
    try:
        check_kwargs(kwargs, processor.adjustable)
        if vision.family != "gemma3" or not kwargs.get("do_pan_and_scan"):
            return ()
        return tuple(sorted({*vision.units, processor.read(Configs({}, kwargs, {})).units_max}))
    except RequestError as error:
        raise ConfigError(error.message, hint=error.hint) from None
    except CheckpointError as error:
        raise ConfigError(f"mm_processor_kwargs: {error.message}") from None
