"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: pictures of any size in patches, a rope of 3 axes for text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.models.vision.spec import (
    activation,
    dense,
    hub_names,
    norm,
    plain,
    see,
    tower_arrays,
    vision_config,
)
from ranvier.models.vision.text import text_side
from ranvier.nn.vision.patches import PatchEncoder
from ranvier.nn.vision.tower import Tower

__all__ = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"]

UNITS = (256, 1024, 4096, 16384)
EPS = 1e-6
THETA = 10000.0
PARTS = {
    "qkv": "attn.qkv", "o": "attn.proj", "gate": "mlp.gate_proj", "up": "mlp.fc1",
    "down": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
}  # fmt: skip
DEFAULTS = {
    "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    "hidden_act": "quick_gelu",
}  # fmt: skip
DEFAULTS_2_5 = {
    "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    "hidden_act": "silu", "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
DEFAULTS_3 = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
    "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    "hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
PREFIXES = (("model.language_model.", "model."), ("model.visual.", "visual."))
NAMES_3 = {"model.": "model.language_model."}


def qwen2_vl(fields: dict[str, Any]) -> DecoderSpec:
    """Qwen2VLForConditionalGeneration."""
    text, config = _text(fields, "qwen2"), vision_config(fields, DEFAULTS)
    hidden = config.count("embed_dim")
    tower = _tower(config, hidden, hidden * config.count("mlp_ratio"))
    encoder = PatchEncoder(
        tower, text.hidden, _values(config), config.count("spatial_merge_size"), "gelu"
    )
    arrays = [
        *dense("vision.patch", hidden, encoder.values, "visual.patch_embed.proj"),
        *tower_arrays(tower, lambda i, part: f"visual.blocks.{i}.{part}", PARTS),
        *norm("vision.project_norm", hidden, "visual.merger.ln_q"),
        *_head("vision.project", encoder, "visual.merger.mlp.0", "visual.merger.mlp.2"),
    ]
    vision = _spec("qwen2_vl", config, encoder, arrays)
    return see(text, vision, prefixes=PREFIXES)


def qwen2_5_vl(fields: dict[str, Any]) -> DecoderSpec:
    """Qwen2_5_VLForConditionalGeneration: RMS norms, a gated MLP, windows in most layers."""
    text, config = _text(fields, "qwen2"), vision_config(fields, DEFAULTS_2_5)
    hidden, merge = config.count("hidden_size"), config.count("spatial_merge_size")
    tower = _tower(config, hidden, config.count("intermediate_size"), is_gated=True)
    encoder = PatchEncoder(tower, text.hidden, _values(config), merge, "gelu", labels=2)
    parts = {**PARTS, "up": "mlp.up_proj", "down": "mlp.down_proj"}
    arrays = [
        *dense("vision.patch", hidden, encoder.values, "visual.patch_embed.proj"),
        *tower_arrays(tower, lambda i, part: f"visual.blocks.{i}.{part}", parts, is_rms=True),
        *norm("vision.project_norm", hidden, "visual.merger.ln_q", bias=False),
        *_head("vision.project", encoder, "visual.merger.mlp.0", "visual.merger.mlp.2"),
    ]
    window = config.count("window_size") // merge // config.count("patch_size")
    full = set(config.get("fullatt_block_indexes"))
    labels = [int(layer not in full) for layer in range(tower.layers)]
    vision = _spec("qwen2_5_vl", config, encoder, arrays, window=window)
    vision = dataclasses.replace(vision, constants={**vision.constants, "vision.labels": labels})
    return see(text, vision, prefixes=PREFIXES)


def qwen3_vl(fields: dict[str, Any]) -> DecoderSpec:
    """Qwen3VLForConditionalGeneration: learned positions beside the rope, features for 3 layers."""
    text, config = _text(fields, "qwen3"), vision_config(fields, DEFAULTS_3)
    hidden = config.count("hidden_size")
    deep = tuple(config.get("deepstack_visual_indexes"))
    tower = _tower(config, hidden, config.count("intermediate_size"))
    encoder = PatchEncoder(
        tower, text.hidden, _values(config), config.count("spatial_merge_size"), "gelu",
        has_patch_bias=True, has_table=True, deep=deep,
    )  # fmt: skip
    entries = config.count("num_position_embeddings")
    parts = {**PARTS, "up": "mlp.linear_fc1", "down": "mlp.linear_fc2"}
    base, merged = "model.visual", hidden * encoder.merge**2
    arrays = [
        *dense("vision.patch", hidden, encoder.values, f"{base}.patch_embed.proj", bias=True),
        plain("vision.positions", (entries, hidden), f"{base}.pos_embed.weight"),
        *tower_arrays(tower, lambda i, part: f"{base}.blocks.{i}.{part}", parts),
        *norm("vision.project_norm", hidden, f"{base}.merger.norm"),
        *_head("vision.project", encoder, f"{base}.merger.linear_fc1", f"{base}.merger.linear_fc2"),
    ]
    for i in range(len(deep)):
        own = f"{base}.deepstack_merger_list.{i}"
        arrays += norm(f"vision.deep{i}_norm", merged, f"{own}.norm")
        arrays += _head(f"vision.deep{i}", encoder, f"{own}.linear_fc1", f"{own}.linear_fc2")
    vision = _spec("qwen3_vl", config, encoder, arrays, side=round(entries**0.5))
    return see(hub_names(text, NAMES_3), vision)


def _text(fields: dict[str, Any], kind: str) -> DecoderSpec:
    """The text side, whose fields older files have beside vision_config, with its rope's axes."""
    given = dict(fields.get("text_config") or fields)
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    sections = rope.get("mrope_section")
    if not sections:
        raise CheckpointError("config.json: rope_scaling has no mrope_section.")
    plain_rope = {**rope, "rope_type": "default", "type": "default"}
    given |= {"rope_parameters": plain_rope, "rope_scaling": None, "model_type": kind}
    spec = text_side({**fields, "text_config": given})
    is_interleaved = bool(rope.get("mrope_interleaved", kind == "qwen3"))
    axes = _axes(sections, spec.head_size // 2, is_interleaved)
    return dataclasses.replace(spec, rope_axes=axes)


def _axes(sections: Sequence[int], count: int, is_interleaved: bool) -> tuple[int, ...]:
    """The axis of each frequency: runs of frames, rows, columns; or the three in turn."""
    if len(sections) != 3 or sum(sections) != count:
        raise CheckpointError(
            f"config.json: mrope_section={list(sections)} must be three counts that sum to {count}."
        )
    if not is_interleaved:
        return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
    axes = [0] * count
    for axis in (1, 2):
        for at in range(axis, min(sections[axis] * 3, count), 3):
            axes[at] = axis
    return tuple(axes)


def _tower(config: Config, hidden: int, intermediate: int, *, is_gated: bool = False) -> Tower:
    return Tower(
        "vision", hidden, config.count("depth"), config.count("num_heads"), intermediate, EPS,
        activation(config), is_gated=is_gated,
    )  # fmt: skip


def _values(config: Config) -> int:
    """Numbers of a patch: a still picture fills each of its frames."""
    return 3 * config.count("temporal_patch_size") * config.count("patch_size") ** 2


def _head(name: str, encoder: PatchEncoder, first: str, second: str) -> list[ArraySpec]:
    size = encoder.tower.hidden * encoder.merge**2
    return [
        *dense(f"{name}1", size, size, first, bias=True),
        *dense(f"{name}2", encoder.output, size, second, bias=True),
    ]


def _spec(
    family: str, config: Config, encoder: PatchEncoder, arrays: list[ArraySpec], **numbers: int
) -> VisionSpec:
    size = encoder.tower.head_size // 2
    ladder = [THETA ** (-2 * i / size) for i in range(size // 2)]
    none = [0.0] * len(ladder)
    return VisionSpec(
        family=family, unit="patches", units=UNITS, encoder=encoder, arrays=tuple(arrays),
        preparation={"kind": "grid", "merge": encoder.merge, **numbers},
        constants={"vision.inv_freq": [ladder + none, none + ladder]},
    )  # fmt: skip
