"""VisionSpec: the encoder of a model as data, and the array trees that encoders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config
from ranvier.models.spec import ArraySpec, DecoderSpec, VisionSpec
from ranvier.nn.vision.tower import Activation, Tower

__all__ = [
    "Namer", "activation", "dense", "hub_names", "norm", "plain", "see", "side_of", "tower_arrays",
    "vision_config",
]  # fmt: skip

Namer = Callable[[int, str], str]
"""The checkpoint's name of a part of a layer."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "silu",
}  # fmt: skip
PARTS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "qkv": "", "o": "self_attn.out_proj", "gate": "mlp.gate_proj", "up": "mlp.fc1",
    "down": "mlp.fc2", "norm1": "layer_norm1", "norm2": "layer_norm2",
}  # fmt: skip
"""CLIP's and SigLIP's names of a layer's parts."""


def vision_config(fields: dict[str, Any], defaults: Mapping[str, Any]) -> Config:
    """vision_config of config.json, with the defaults that its writer leaves out."""
    given = fields.get("vision_config")
    if not isinstance(given, dict):
        raise CheckpointError("config.json: vision_config is missing: no encoder to build.")
    return Config({**defaults, **given})


def activation(config: Config, default: str = "gelu") -> Activation:
    """Raises CheckpointError."""
    name = config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: vision_config.hidden_act {name!r} is not supported; supported: "
            f"{', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def side_of(config: Config) -> int:
    """Patches along a side of the square picture. Raises CheckpointError."""
    size, patch = config.count("image_size"), config.count("patch_size")
    if size < patch:
        raise CheckpointError(f"config.json: image_size={size} is below patch_size={patch}.")
    return size // patch


def plain(name: str, shape: tuple[int, ...], source: str, offset: float = 0.0) -> ArraySpec:
    """One plain array of one tensor, with a layer axis of 1."""
    return ArraySpec(name, "plain", (1, *shape), ((source,),), offset)


def dense(
    name: str, outputs: int, inputs: int, source: str, *, bias: bool = False
) -> list[ArraySpec]:
    """One linear of `<source>.weight`, and `<source>.bias` where it has one."""
    arrays = [ArraySpec(name, "linear", (1, outputs, inputs), ((f"{source}.weight",),))]
    return arrays + ([plain(f"{name}_bias", (outputs,), f"{source}.bias")] if bias else [])


def norm(name: str, size: int, source: str, *, bias: bool = True) -> list[ArraySpec]:
    """A norm's weight, and its bias: a layer norm has one, an RMS norm does not."""
    arrays = [plain(name, (size,), f"{source}.weight")]
    return arrays + ([plain(f"{name}_bias", (size,), f"{source}.bias")] if bias else [])


def tower_arrays(
    tower: Tower, namer: Namer, parts: Mapping[str, str] = PARTS, *, is_rms: bool = False
) -> list[ArraySpec]:
    """The stacks of a tower's blocks. parts["qkv"], where it is given, names q, k and v as one."""
    t, size = tower, tower.heads * tower.head_size
    parts = {**PARTS, **parts}
    qkv = (parts["qkv"],) if parts["qkv"] else (parts["q"], parts["k"], parts["v"])
    rows: list[tuple[str, tuple[str, ...], int, int, bool]] = [
        ("qkv", qkv, 3 * size, t.hidden, t.has_qkv_bias),
        ("o", (parts["o"],), t.hidden, size, t.has_o_bias),
        ("up", (parts["up"],), t.intermediate, t.hidden, t.has_mlp_bias),
        ("down", (parts["down"],), t.hidden, t.intermediate, t.has_mlp_bias),
    ]
    if t.is_gated:
        rows.append(("gate", (parts["gate"],), t.intermediate, t.hidden, t.has_mlp_bias))

    def each(names: tuple[str, ...], suffix: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(namer(i, f"{n}{suffix}") for n in names) for i in range(t.layers))

    arrays = []
    for name, names, outputs, inputs, bias in rows:
        shape = (t.layers, outputs, inputs)
        arrays.append(ArraySpec(f"{t.name}.{name}", "linear", shape, each(names, ".weight")))
        if bias:
            arrays.append(
                ArraySpec(f"{t.name}.{name}_bias", "plain", shape[:2], each(names, ".bias"))
            )
    for name in ("norm1", "norm2"):
        for suffix, ending in (("", ".weight"), ("_bias", ".bias")):
            if not (is_rms and suffix):
                arrays.append(
                    ArraySpec(f"{t.name}.{name}{suffix}", "plain", (t.layers, t.hidden),
                              each((parts[name],), ending))
                )  # fmt: skip
    if t.has_gates:
        for name in ("attn_gate", "mlp_gate"):
            sources = each((parts[name],), "")
            arrays.append(ArraySpec(f"{t.name}.{name}", "plain", (t.layers, 1), sources))
    return arrays


def hub_names(spec: DecoderSpec, prefixes: Mapping[str, str]) -> DecoderSpec:
    """The text side under the names that it has within a model that sees pictures."""

    def renamed(name: str) -> str:
        for old, new in prefixes.items():
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    arrays = tuple(
        dataclasses.replace(
            array, sources=tuple(tuple(map(renamed, names)) for names in array.sources)
        )
        for array in spec.arrays
    )
    return dataclasses.replace(spec, arrays=arrays)


def see(spec: DecoderSpec, vision: VisionSpec, **changes: Any) -> DecoderSpec:
    """The text side with its encoder: one tree of arrays."""
    return dataclasses.replace(
        spec, arrays=(*spec.arrays, *vision.arrays), vision=vision, family=vision.family, **changes
    )
