"""Llava-Next: a picture whole and in tiles, their features in rows that end in a newline's."""

from __future__ import annotations

from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.spec import DecoderSpec, VisionSpec
from ranvier.models.vision.llava import LANGUAGE, PREFIXES, clip_encoder
from ranvier.models.vision.spec import hub_names, plain, see
from ranvier.models.vision.text import text_side

__all__ = ["llava_next"]

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def llava_next(fields: dict[str, Any]) -> DecoderSpec:
    """LlavaNextForConditionalGeneration."""
    text = text_side(fields)
    encoder, arrays = clip_encoder(fields, text.hidden, has_order=True)
    size = int((fields.get("vision_config") or {}).get("image_size", 336))
    counts = {
        1 + (h // size) * (w // size) for h, w in fields.get("image_grid_pinpoints") or PINPOINTS
    }
    if not all(count > 1 for count in counts):
        raise CheckpointError(
            f"config.json: image_grid_pinpoints holds a size below image_size={size}."
        )
    arrays.append(plain("vision.newline", (text.hidden,), "image_newline"))
    patch = round((encoder.values // 3) ** 0.5)
    vision = VisionSpec(
        family="llava_next", unit="tiles", units=tuple(sorted({1, *counts})), encoder=encoder,
        arrays=tuple(arrays),
        preparation={"kind": "anyres", "patch": patch, "side": size // patch},
    )  # fmt: skip
    return see(hub_names(text, LANGUAGE), vision, prefixes=PREFIXES)
