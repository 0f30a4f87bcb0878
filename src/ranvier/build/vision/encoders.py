"""The encode programs of a model that sees pictures: their buckets, arguments and state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.core.errors import ConfigError
from ranvier.core.media import VisionInfo
from ranvier.core.program import ProgramShape, encoder_shapes
from ranvier.models.spec import DecoderSpec, VisionSpec
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.vision.encoder import encode_features
from ranvier.nn.vision.mllama import CrossKeys, MllamaEncoder, encode_cross
from ranvier.nn.vision.patches import PatchEncoder
from ranvier.nn.vision.tiles import TileEncoder
from ranvier.nn.vision.tower import TILE_MAX, WHOLE_MAX
from ranvier.runtime.encoder import PREFIX

__all__ = [
    "encoder_numbers", "encoder_programs", "is_seeing", "resolve_vision", "units_of_patches",
    "vision_state", "without_pictures",
]  # fmt: skip

CACHED_PROMPTS = 2
"""Of the most pictures: how many the blocks of tiles hold."""
CACHED_PICTURES = 4
"""Of the largest kind: how many the feature buffer holds beside those of running prompts."""


def is_seeing(name: str) -> bool:
    """Whether a weight belongs to encode programs alone."""
    return name.startswith(PREFIX)


def resolve_vision(
    spec: DecoderSpec, model_len_max: int, images_max: int, units: tuple[int, ...] = ()
) -> VisionInfo | None:
    """The bounds of a build's encoder; `units` as a user listed them. Raises ConfigError.

    None where the model sees no pictures, or none are allowed. A bucket whose features are longer
    than a sequence is left out: no prompt could hold them.
    """
    vision = spec.vision
    if vision is None or not images_max:
        return None
    listed = units or vision.units
    if vision.cross_before:
        blocks = CACHED_PROMPTS * images_max * listed[-1]
        return VisionInfo(
            family=vision.family, unit=vision.unit, units=listed, rows=1 + blocks,
            images_max=images_max, is_cross=True,
        )  # fmt: skip
    fitting = tuple(u for u in listed if vision.encoder.outputs(u) <= model_len_max)
    least = vision.encoder.outputs(listed[0])
    if not fitting and vision.unit == "patches" and not units:
        fitting = (listed[0] // least * model_len_max,)
    if not fitting:
        raise ConfigError(
            f"max_model_len={model_len_max} holds no picture: the smallest takes {least} tokens.",
            hint="Raise --max-model-len, or set --limit-mm-per-prompt to no pictures.",
        )
    largest = vision.encoder.outputs(fitting[-1])
    return VisionInfo(
        family=vision.family, unit=vision.unit, units=fitting, images_max=images_max,
        rows=max(largest * CACHED_PICTURES, model_len_max), is_whole=vision.is_whole,
        has_rope_axes=bool(spec.rope_axes),
    )  # fmt: skip


def without_pictures(spec: DecoderSpec) -> DecoderSpec:
    """The text side alone; layers that attend to tiles are left out with the encoder."""
    if spec.vision is None:
        return spec
    seeing = {array.name for array in spec.vision.arrays}
    arrays = tuple(array for array in spec.arrays if array.name not in seeing)
    return dataclasses.replace(spec, arrays=arrays, vision=None)


def units_of_patches(vision: VisionSpec, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Buckets of the encoder's units that hold so many patches each, ascending."""
    encoder = vision.encoder
    if isinstance(encoder, MllamaEncoder):
        return tuple(sorted({min(-(-n // encoder.padded), encoder.tiles) for n in sizes}))
    if isinstance(encoder, TileEncoder):
        return tuple(sorted({-(-size // encoder.patches) for size in sizes}))
    merged = encoder.merge**2 if isinstance(encoder, PatchEncoder) else 1

    def whole(size: int) -> int:
        # Where attention takes its queries in tiles, a prime number of them would make it one each.
        unit = math.lcm(merged, TILE_MAX) if size > WHOLE_MAX else merged
        return -(-size // unit) * unit

    return tuple(sorted(set(map(whole, sizes))))


def vision_state(
    spec: DecoderSpec, info: VisionInfo | None, dtype: str
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The feature buffer, its last row garbage; or the blocks of tiles' keys and values."""
    if spec.vision is None or info is None:
        return {}
    if info.is_cross:
        vision = spec.vision
        shape = (
            len(vision.cross_before),
            info.rows,
            vision.cross_keys,
            spec.kv_heads,
            spec.head_size,
        )
        return {"cross_k": (shape, dtype), "cross_v": (shape, dtype)}
    return {"features": ((info.rows + 1, spec.vision.encoder.width), dtype)}


def encoder_numbers(spec: DecoderSpec, info: VisionInfo | None) -> dict[str, Any]:
    """What the runtime has to know of encode programs: the manifest's model["encoder"]."""
    if spec.vision is None or info is None:
        return {}
    encoder = spec.vision.encoder
    buckets = {
        str(units): {"inputs": encoder.inputs(units), "outputs": encoder.outputs(units)}
        for units in info.units
    }
    numbers = {
        "preparation": dict(spec.vision.preparation), "buckets": buckets,
        "state": list(vision_state(spec, info, "")),
    }  # fmt: skip
    return {"encoder": numbers}


def encoder_programs(
    spec: DecoderSpec,
    info: VisionInfo,
    kernels: Kernels,
    weights: Mapping[str, Any],
    state: Mapping[str, Any],
    sum_of: Callable[[jax.Array], jax.Array] | None = None,
) -> Iterator[tuple[ProgramShape, Any, tuple[Any, Any, Any]]]:
    """(shape, function, arguments) of each encode program; `sum_of`: over cores."""
    struct: Any = jax.ShapeDtypeStruct
    assert spec.vision is not None
    encoder = spec.vision.encoder
    own = {name: state[name] for name in vision_state(spec, info, "")}
    for shape in encoder_shapes(info):
        inputs = {
            name: struct(size, jnp.dtype(kind))
            for name, (size, kind) in encoder.inputs(shape.tokens).items()
        }
        inputs["rows"] = struct((encoder.outputs(shape.tokens),), jnp.int32)
        yield shape, _function(spec, kernels, sum_of), (dict(weights), own, inputs)


def _function(
    spec: DecoderSpec, kernels: Kernels, sum_of: Callable[[jax.Array], jax.Array] | None
) -> Any:
    assert spec.vision is not None
    encoder = spec.vision.encoder
    if isinstance(encoder, MllamaEncoder):
        layers = len(spec.vision.cross_before)
        keys = CrossKeys(layers, spec.kv_heads, spec.head_size, spec.norm_eps)
        return encode_cross(encoder, kernels, keys, sum_of)
    return encode_features(encoder, kernels, sum_of)
