"""Llama 3.2 Vision: tiles of a picture, and layers of the text side that attend to them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.llama import llama
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.models.vision.spec import (
    activation,
    dense,
    norm,
    plain,
    see,
    side_of,
    tower_arrays,
    vision_config,
)
from ranvier.nn.vision.mllama import MllamaEncoder
from ranvier.nn.vision.tower import Tower, see_copies

__all__ = ["mllama"]

TEXT = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 500000.0, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}  # fmt: skip
VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_global_layers": 8, "attention_heads": 16, "image_size": 448, "patch_size": 14,
    "norm_eps": 1e-5, "hidden_act": "gelu", "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
}  # fmt: skip
PARTS = {
    "o": "self_attn.o_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "attn_gate": "gate_attn", "mlp_gate": "gate_ffn",
}  # fmt: skip
EMBED_EXTRA = 8
"""Ids of pictures: they have an embedding and are never drawn."""
MULTIPLE = 8
"""A tile's patches are padded to one."""
LANGUAGE = "language_model."


def mllama(fields: dict[str, Any]) -> DecoderSpec:
    """MllamaForConditionalGeneration."""
    given = {k: v for k, v in fields.get("text_config", {}).items() if v is not None}
    ends = {k: fields[k] for k in ("eos_token_id", "bos_token_id") if fields.get(k) is not None}
    whole = {**TEXT, **ends, **given}
    count, crossing = int(whole["num_hidden_layers"]), list(whole["cross_attention_layers"])
    own = [layer for layer in range(count) if layer not in crossing]
    if len(own) + len(crossing) != count or not own:
        raise CheckpointError(
            f"config.json: cross_attention_layers={crossing} are no distinct layers of {count}."
        )
    text = _named(llama({**whole, "num_hidden_layers": len(own)}), own)
    config = vision_config(fields, VISION)
    encoder = _encoder(config, text.hidden)
    before = tuple(sum(layer < cross for layer in own) for cross in sorted(crossing))
    vision = VisionSpec(
        family="mllama", unit="tiles", units=_units(encoder.tiles), encoder=encoder,
        arrays=(*_arrays(config, encoder), *_cross_arrays(text, sorted(crossing))),
        preparation={
            "kind": "mllama", "patch": config.count("patch_size"),
            "ratios": config.get("supported_aspect_ratios"),
        },
        cross_before=before, cross_keys=encoder.patches,
    )  # fmt: skip
    return see(text, vision, embed_extra=EMBED_EXTRA)


def _units(tiles: int) -> tuple[int, ...]:
    """Powers of two and all: a picture of one less than all is as much work as one of all."""
    return (*(1 << i for i in range((tiles - 1).bit_length())), tiles)


def _named(text: DecoderSpec, own: list[int]) -> DecoderSpec:
    """The self-attention layers under their numbers among all layers; the longer embedding."""

    def renamed(name: str) -> str:
        head, _, tail = name.partition("layers.")
        if not tail:
            return LANGUAGE + name
        at, _, part = tail.partition(".")
        return f"{LANGUAGE}{head}layers.{own[int(at)]}.{part}"

    arrays = []
    for array in text.arrays:
        sources = tuple(tuple(map(renamed, names)) for names in array.sources)
        shape = array.shape
        if array.name == "embed":
            shape = (1, text.vocab_size + EMBED_EXTRA, text.hidden)
        arrays.append(dataclasses.replace(array, sources=sources, shape=shape))
    return dataclasses.replace(text, arrays=tuple(arrays))


def _encoder(config: Config, width: int) -> MllamaEncoder:
    hidden, heads = config.count("hidden_size"), config.count("attention_heads")
    keep = tuple(config.get("intermediate_layers_indices"))
    output = config.count("vision_output_dim", hidden * (1 + len(keep)))
    if output != hidden * (1 + len(keep)):
        raise CheckpointError(
            f"config.json: vision_output_dim={output} is not hidden_size={hidden} times "
            f"{1 + len(keep)} states."
        )
    tower = Tower(
        "vision", hidden, config.count("num_hidden_layers"), heads,
        config.count("intermediate_size"), config.number("norm_eps"), activation(config),
        has_qkv_bias=False, has_o_bias=False, see=see_copies,
    )  # fmt: skip
    whole = dataclasses.replace(
        tower, name="vision.global", layers=config.count("num_global_layers"), has_gates=True
    )
    patches, patch = side_of(config) ** 2 + 1, config.count("patch_size")
    return MllamaEncoder(
        tower, whole, config.count("max_num_tiles"), patches, -(-patches // MULTIPLE) * MULTIPLE,
        3 * patch * patch, width, keep,
    )  # fmt: skip


def _arrays(config: Config, encoder: MllamaEncoder) -> list[ArraySpec]:
    hidden, tiles, patches = encoder.tower.hidden, encoder.tiles, encoder.patches
    ratios = len(config.get("supported_aspect_ratios")) + 1
    gated, base = "vision_model.gated_positional_embedding", "vision_model."
    arrays = [
        *dense("vision.patch", hidden, encoder.values, f"{base}patch_embedding"),
        plain("vision.class", (hidden,), f"{base}class_embedding"),
        plain("vision.position_gate", (1,), f"{gated}.gate"),
        plain("vision.positions", (patches, hidden), f"{gated}.embedding"),
        plain("vision.tile_positions", (ratios, tiles * patches * hidden),
              f"{gated}.tile_embedding.weight"),
        *norm("vision.pre_norm", hidden, f"{base}layernorm_pre"),
        *norm("vision.post_norm", hidden, f"{base}layernorm_post"),
        *tower_arrays(encoder.tower, lambda i, p: f"{base}transformer.layers.{i}.{p}", PARTS),
        *tower_arrays(encoder.whole, lambda i, p: f"{base}global_transformer.layers.{i}.{p}",
                      PARTS),
        *dense("vision.project1", encoder.width, hidden * (1 + len(encoder.keep)),
               "multi_modal_projector", bias=True),
    ]  # fmt: skip
    for name in ("pre_tile", "post_tile"):
        source = f"{base}{name}_positional_embedding"
        arrays.append(
            plain(f"vision.{name}", (ratios, tiles * hidden), f"{source}.embedding.weight")
        )
        arrays.append(plain(f"vision.{name}_gate", (1,), f"{source}.gate"))
    return arrays


def _cross_arrays(text: DecoderSpec, crossing: list[int]) -> list[ArraySpec]:
    """Of the layers that attend to tiles; keys and values belong to the encoder's program."""
    count, hidden, size = len(crossing), text.hidden, text.head_size
    q, kv, inner = text.heads * size, text.kv_heads * size, text.intermediate

    def each(*parts: str) -> tuple[tuple[str, ...], ...]:
        base = f"{LANGUAGE}model.layers"
        return tuple(tuple(f"{base}.{i}.{part}" for part in parts) for i in crossing)

    def row(name: str, size: int, part: str) -> ArraySpec:
        return ArraySpec(name, "plain", (count, size), each(part))

    return [
        ArraySpec("vision.cross_kv", "linear", (count, 2 * kv, hidden),
                  each("cross_attn.k_proj.weight", "cross_attn.v_proj.weight")),
        row("vision.cross_k_norm", size, "cross_attn.k_norm.weight"),
        ArraySpec("cross_q", "linear", (count, q, hidden), each("cross_attn.q_proj.weight")),
        ArraySpec("cross_o", "linear", (count, hidden, q), each("cross_attn.o_proj.weight")),
        ArraySpec("cross_gate_up", "gated", (count, 2 * inner, hidden),
                  each("mlp.gate_proj.weight", "mlp.up_proj.weight")),
        ArraySpec("cross_down", "linear", (count, hidden, inner), each("mlp.down_proj.weight")),
        row("cross_q_norm", size, "cross_attn.q_norm.weight"),
        row("cross_norm1", hidden, "input_layernorm.weight"),
        row("cross_norm2", hidden, "post_attention_layernorm.weight"),
        row("cross_attn_gate", 1, "cross_attn_attn_gate"),
        row("cross_mlp_gate", 1, "cross_attn_mlp_gate"),
    ]  # fmt: skip
