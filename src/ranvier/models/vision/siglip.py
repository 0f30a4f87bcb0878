"""Families on SigLIP's tower: Gemma 3 (means of patches) and Idefics3, SmolVLM (pixel shuffle)."""

from __future__ import annotations

from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.gemma3 import gemma3
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.models.vision.spec import (
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
from ranvier.nn.vision.tiles import Head, PoolHead, ShuffleHead, TileEncoder
from ranvier.nn.vision.tower import Tower

__all__ = ["gemma3_vision", "idefics3"]

SIGLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh", "num_channels": 3,
}  # fmt: skip
IDEFICS = {**SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
TILES = (1, 5, 13, 17, 26)
"""The whole picture and its cuts: 2 x 2, 3 x 4, 4 x 4, 5 x 5."""
SHIFTED, SIDE_MAX = (19, 25, 29, 31), 32
"""Patches a side at which the reference's f32 bounds give a patch its neighbour's position."""
GEMMA = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
TOWER = "vision_tower.vision_model."


def gemma3_vision(fields: dict[str, Any]) -> DecoderSpec:
    """Gemma3ForConditionalGeneration: 256 features a picture, which see each other.

    A file without vision_config holds the text side alone.
    """
    if not fields.get("vision_config"):
        return text_side(fields, "gemma3_text") if "text_config" in fields else gemma3(fields)
    text, config, outer = (
        text_side(fields, "gemma3_text"),
        vision_config(fields, SIGLIP),
        Config(fields),
    )
    tokens, side = outer.count("mm_tokens_per_image", 256), side_of(config)
    root = round(tokens**0.5)
    if root * root != tokens or side % root:
        raise CheckpointError(
            f"config.json: mm_tokens_per_image={tokens} does not divide {side} x {side} patches."
        )
    if any(0 < window < tokens for window in text.windows):
        raise CheckpointError(
            f"config.json: sliding_window={max(text.windows)} is below the {tokens} tokens of a "
            "picture, which see each other: not supported."
        )
    eps = config.number("layer_norm_eps")
    encoder, arrays = _tiles(config, PoolHead(text.hidden, side // root, eps), TOWER)
    arrays += [
        plain("vision.project_norm", (encoder.tower.hidden,),
              "multi_modal_projector.mm_soft_emb_norm.weight", 1.0),
        ArraySpec("vision.project1", "linear", (1, text.hidden, encoder.tower.hidden),
                  (("multi_modal_projector.mm_input_projection_weight",),), is_transposed=True),
    ]  # fmt: skip
    vision = VisionSpec(
        family="gemma3", unit="tiles", units=(1,), encoder=encoder, arrays=tuple(arrays),
        preparation={"kind": "tiles", "patch": config.count("patch_size")}, is_whole=True,
    )  # fmt: skip
    return see(hub_names(text, GEMMA), vision, prefixes=(("vision_tower.", TOWER),))


def idefics3(fields: dict[str, Any]) -> DecoderSpec:
    """Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration."""
    text, config, outer = text_side(fields), vision_config(fields, IDEFICS), Config(fields)
    factor, side = outer.count("scale_factor", 2), side_of(config)
    if side % factor:
        raise CheckpointError(
            f"config.json: scale_factor={factor} does not divide {side} patches a side."
        )
    if side in SHIFTED or side > SIDE_MAX:
        raise CheckpointError(
            f"config.json: {side} patches a side: Idefics3's reference rounds some of their "
            "positions down, which is not supported; 26, 27 and 32 are in use."
        )
    head = ShuffleHead(text.hidden, factor)
    encoder, arrays = _tiles(config, head, "model.vision_model.")
    inputs = encoder.tower.hidden * factor**2
    arrays += dense("vision.project1", text.hidden, inputs,
                    "model.connector.modality_projection.proj")  # fmt: skip
    vision = VisionSpec(
        family="idefics3", unit="tiles", units=TILES, encoder=encoder, arrays=tuple(arrays),
        preparation={"kind": "tiles", "patch": config.count("patch_size")},
    )  # fmt: skip
    return see(hub_names(text, {"model.": "model.text_model."}), vision)


def _tiles(config: Config, head: Head, base: str) -> tuple[TileEncoder, list[ArraySpec]]:
    """SigLIP's tower, all layers and the norm behind them."""
    hidden, eps = config.count("hidden_size"), config.number("layer_norm_eps")
    tower = Tower(
        "vision", hidden, config.count("num_hidden_layers"), config.count("num_attention_heads"),
        config.count("intermediate_size"), eps, activation(config, "gelu_pytorch_tanh"),
    )  # fmt: skip
    side, patch = side_of(config), config.count("patch_size")
    encoder = TileEncoder(
        tower, head, side * side, 3 * patch * patch, (tower.layers - 1,),
        has_post_norm=True,
    )  # fmt: skip
    arrays = [
        *dense("vision.patch", hidden, encoder.values, f"{base}embeddings.patch_embedding",
               bias=True),
        plain("vision.positions", (side * side, hidden),
              f"{base}embeddings.position_embedding.weight"),
        *tower_arrays(tower, lambda i, part: f"{base}encoder.layers.{i}.{part}"),
        *norm("vision.post_norm", hidden, f"{base}post_layernorm"),
    ]  # fmt: skip
    return encoder, arrays
