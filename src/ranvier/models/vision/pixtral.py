"""Pixtral: patches of pictures of any size under a rope of two axes; a feature a patch."""

from __future__ import annotations

from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.spec import DecoderSpec, VisionSpec
from ranvier.models.vision.llava import LANGUAGE
from ranvier.models.vision.spec import (
    ACTIVATIONS,
    activation,
    dense,
    hub_names,
    norm,
    see,
    tower_arrays,
    vision_config,
)
from ranvier.models.vision.text import text_side
from ranvier.nn.vision.patches import PatchEncoder
from ranvier.nn.vision.tower import Tower

__all__ = ["pixtral"]

DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 1024, "patch_size": 16, "hidden_act": "gelu",
    "num_channels": 3,
}  # fmt: skip
PARTS = {
    "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "o": "attention.o_proj", "gate": "feed_forward.gate_proj", "up": "feed_forward.up_proj",
    "down": "feed_forward.down_proj", "norm1": "attention_norm", "norm2": "ffn_norm",
}  # fmt: skip
EPS = 1e-5
UNITS = (256, 1024, 4096)


def pixtral(fields: dict[str, Any]) -> DecoderSpec:
    """LlavaForConditionalGeneration with a Pixtral tower."""
    text, config, outer = (
        text_side(fields, "mistral"),
        vision_config(fields, DEFAULTS),
        Config(fields),
    )
    if outer.get("vision_feature_layer", -1) != -1:
        raise CheckpointError("config.json: vision_feature_layer must be -1 for a Pixtral tower.")
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    tower = Tower(
        "vision", hidden, config.count("num_hidden_layers"), heads,
        config.count("intermediate_size"), EPS, activation(config), is_gated=True,
        has_qkv_bias=False, has_o_bias=False, has_mlp_bias=False,
    )  # fmt: skip
    patch, bias = config.count("patch_size"), bool(fields.get("multimodal_projector_bias", True))
    encoder = PatchEncoder(
        tower, text.hidden, 3 * patch * patch, merge=1, has_patch_bias=False, has_pre_norm=True,
        head_activation=ACTIVATIONS[outer.get("projector_hidden_act", "gelu")],
        has_head_bias=bias, has_head_norm=False,
    )  # fmt: skip
    arrays = [
        *dense("vision.patch", hidden, encoder.values, "vision_tower.patch_conv"),
        *norm("vision.pre_norm", hidden, "vision_tower.ln_pre", bias=False),
        *tower_arrays(tower, lambda i, part: f"vision_tower.transformer.layers.{i}.{part}",
                      PARTS, is_rms=True),
        *dense("vision.project1", text.hidden, hidden, "multi_modal_projector.linear_1", bias=bias),
        *dense("vision.project2", text.hidden, text.hidden, "multi_modal_projector.linear_2",
               bias=bias),
    ]  # fmt: skip
    side = config.count("image_size") // patch
    vision = VisionSpec(
        family="pixtral", unit="patches",
        units=tuple(sorted({min(u, side * side) for u in UNITS})), encoder=encoder,
        arrays=tuple(arrays), preparation={"kind": "raster", "patch": patch, "merge": 1},
        constants={"vision.inv_freq": _frequencies(config, hidden // heads)},
    )  # fmt: skip
    return see(hub_names(text, LANGUAGE), vision)


def _frequencies(config: Config, size: int) -> list[list[float]]:
    """Of rows and of columns [2, E/2]: they take the even and the odd ones of one ladder."""
    rope = config.get("rope_parameters", {})
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    ladder = [theta ** (-2 * i / size) for i in range(size // 2)]
    quarter = len(ladder) // 2
    return [ladder[0::2] + [0.0] * quarter, [0.0] * quarter + ladder[1::2]]
