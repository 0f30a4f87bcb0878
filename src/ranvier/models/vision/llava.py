"""Llava 1.5: CLIP's tower, its second last layer, and a projector of two linears."""

from __future__ import annotations

from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.models.vision.spec import (
    ACTIVATIONS,
    activation,
    dense,
    hub_names,
    norm,
    plain,
    see,
    side_of,
    tower_arrays,
    vision_config,
)
from ranvier.models.vision.text import text_side
from ranvier.nn.vision.tiles import MlpHead, TileEncoder
from ranvier.nn.vision.tower import Tower

__all__ = ["LANGUAGE", "PREFIXES", "clip_encoder", "llava"]

LANGUAGE = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
"""How the text side is called within Llava and its relatives."""
CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu", "num_channels": 3,
}  # fmt: skip
VISION = "vision_tower.vision_model."
PREFIXES = (("vision_tower.", VISION),)


def llava(fields: dict[str, Any]) -> DecoderSpec:
    """LlavaForConditionalGeneration with a CLIP tower; a Pixtral one is another family."""
    kind = (fields.get("vision_config") or {}).get("model_type", "clip_vision_model")
    if kind == "pixtral":
        from ranvier.models.vision.pixtral import pixtral

        return pixtral(fields)
    text = text_side(fields)
    encoder, arrays = clip_encoder(fields, text.hidden)
    vision = VisionSpec(
        family="llava", unit="tiles", units=(1,), encoder=encoder, arrays=tuple(arrays),
        preparation={"kind": "tiles", "patch": round((encoder.values // 3) ** 0.5)},
    )  # fmt: skip
    return see(hub_names(text, LANGUAGE), vision, prefixes=PREFIXES)


def clip_encoder(
    fields: dict[str, Any], width: int, *, has_order: bool = False
) -> tuple[TileEncoder, list[ArraySpec]]:
    """CLIP's tower with Llava's projector, up to the last layer whose state is used."""
    config, outer = vision_config(fields, CLIP), Config(fields)
    if config.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise CheckpointError(
            f"config.json: a vision tower {config.get('model_type')!r} is not supported for "
            "Llava; supported: clip_vision_model, pixtral."
        )
    layers = config.count("num_hidden_layers")
    wanted = outer.get("vision_feature_layer", -2)
    # Hidden state 0 is the input of the first layer.
    states = [w % (layers + 1) for w in (wanted if isinstance(wanted, list) else [wanted])]
    if not all(states):
        raise CheckpointError(f"config.json: vision_feature_layer={wanted!r} is not supported.")
    strategy = outer.get("vision_feature_select_strategy", "default")
    if strategy != "default":
        raise CheckpointError(
            f"config.json: vision_feature_select_strategy {strategy!r} is not supported; "
            "supported: default."
        )
    hidden, eps = config.count("hidden_size"), config.number("layer_norm_eps")
    tower = Tower(
        "vision", hidden, max(states), config.count("num_attention_heads"),
        config.count("intermediate_size"), eps, activation(config),
    )  # fmt: skip
    side, patch, bias = side_of(config), config.count("patch_size"), _has_bias(outer)
    encoder = TileEncoder(
        tower, MlpHead(width, ACTIVATIONS[outer.get("projector_hidden_act", "gelu")], bias),
        side * side, 3 * patch * patch, tuple(state - 1 for state in states),
        has_class=True, has_patch_bias=False, has_pre_norm=True, has_order=has_order,
    )  # fmt: skip
    arrays = [
        *dense("vision.patch", hidden, encoder.values, f"{VISION}embeddings.patch_embedding"),
        plain("vision.class", (hidden,), f"{VISION}embeddings.class_embedding"),
        plain("vision.positions", (side * side + 1, hidden),
              f"{VISION}embeddings.position_embedding.weight"),
        *norm("vision.pre_norm", hidden, f"{VISION}pre_layrnorm"),
        *tower_arrays(tower, lambda i, part: f"{VISION}encoder.layers.{i}.{part}"),
        *dense("vision.project1", width, hidden * len(states), "multi_modal_projector.linear_1",
               bias=bias),
        *dense("vision.project2", width, width, "multi_modal_projector.linear_2", bias=bias),
    ]  # fmt: skip
    return encoder, arrays


def _has_bias(config: Config) -> bool:
    return bool(config.fields.get("multimodal_projector_bias", True))
