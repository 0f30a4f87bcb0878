"""Typed reads of a checkpoint's config.json, and the array trees that families share.

A wrong or missing field is a CheckpointError that names it. Knows nothing of files or arrays.
"""

from __future__ import annotations

import math
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.spec import ArraySpec, DecoderSpec, RopeSpec

__all__ = ["Config", "decoder_arrays", "rope_spec"]


BOUNDS = {
    "num_hidden_layers": 1024, "num_attention_heads": 2**16, "num_key_value_heads": 2**16,
    "hidden_size": 2**20, "intermediate_size": 2**22, "head_dim": 2**14, "vocab_size": 2**24,
}  # fmt: skip
"""What no model reaches; beyond it a config is damaged, and would only exhaust the memory."""


class Config:
    """config.json with checks; `get` for optional fields, `number` and `count` for required."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def get(self, name: str, default: Any = None) -> Any:
        value = self.fields.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer within its bound. Raises CheckpointError."""
        value = self.get(name, default)
        bound = BOUNDS.get(name, 2**31 - 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= bound:
            raise CheckpointError(
                f"config.json: {name} must be an integer in [1, {bound}], is {value!r}."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number. Raises CheckpointError."""
        value = self.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise CheckpointError(f"config.json: {name} must be a positive number, is {value!r}.")
        return float(value)

    def end_ids(self) -> tuple[int, ...]:
        value = self.get("eos_token_id", ())
        return (value,) if isinstance(value, int) else tuple(value)

    def shape(self) -> dict[str, Any]:
        """The sizes that every family has, checked against each other."""
        heads = self.count("num_attention_heads")
        kv_heads = self.count("num_key_value_heads", heads)
        hidden = self.count("hidden_size")
        if heads % kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads={heads} is no multiple of "
                f"num_key_value_heads={kv_heads}."
            )
        return {
            "vocab_size": self.count("vocab_size"),
            "hidden": hidden,
            "layers": self.count("num_hidden_layers"),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_size": self.count("head_dim", hidden // heads),
            "intermediate": self.count("intermediate_size"),
            "model_len_max": self.count("max_position_embeddings"),
        }

    def activation(self) -> Any:
        name = self.get("hidden_activation", self.get("hidden_act", "silu"))
        table = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
        if name not in table:
            raise CheckpointError(
                f"config.json: activation {name!r} is not supported; supported: "
                f"{', '.join(sorted(table))}."
            )
        return table[name]


def rope_spec(config: Config, head_size: int, *, theta: float, scaling: dict[str, Any]) -> RopeSpec:
    """Inverse frequencies of one rope. Types: default, linear, llama3. Raises CheckpointError."""
    inv = [theta ** (-2 * i / head_size) for i in range(head_size // 2)]
    factors = config.get("rope_freq_factors")
    if factors is not None:
        inv = [f / float(x) for f, x in zip(inv, factors, strict=True)]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        inv = [f / float(scaling["factor"]) for f in inv]
    elif kind == "llama3":
        inv = [_llama3(f, scaling) for f in inv]
    elif kind != "default":
        raise CheckpointError(
            f"config.json: rope scaling {kind!r} is not supported; supported: default, linear, "
            "llama3."
        )
    return RopeSpec(tuple(inv))


def _llama3(freq: float, scaling: dict[str, Any]) -> float:
    """Llama 3.1's scaling: long waves divided by factor, short kept, between them blended."""
    factor, low = float(scaling["factor"]), float(scaling["low_freq_factor"])
    high = float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wave = 2 * math.pi / freq
    if wave > original / low:
        return freq / factor
    if wave < original / high:
        return freq
    blend = (original / wave - low) / (high - low)
    return (1 - blend) * freq / factor + blend * freq


def decoder_arrays(spec: DecoderSpec, *, norm_offset: float = 0.0) -> tuple[ArraySpec, ...]:
    """The weight tree in Hugging Face names of the Llama family; see DecoderSpec's flags."""
    layers, hidden = spec.layers, spec.hidden
    q, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size

    def each(*suffixes: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"model.layers.{i}.{s}" for s in suffixes) for i in range(layers))

    def norm(name: str, suffix: str, size: int = hidden) -> ArraySpec:
        sources = each(f"{suffix}.weight")
        return ArraySpec(name, "plain", (layers, size), sources, norm_offset)

    qkv = tuple(f"self_attn.{x}_proj" for x in "qkv")
    arrays = [
        ArraySpec(
            "embed", "linear", (1, spec.vocab_size, hidden), (("model.embed_tokens.weight",),)
        ),
        ArraySpec(
            "qkv", "linear", (layers, q + 2 * kv, hidden), each(*(f"{x}.weight" for x in qkv))
        ),
        ArraySpec("o", "linear", (layers, hidden, q), each("self_attn.o_proj.weight")),
        ArraySpec(
            "gate_up", "gated", (layers, 2 * spec.intermediate, hidden),
            each("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ),
        ArraySpec(
            "down", "linear", (layers, hidden, spec.intermediate), each("mlp.down_proj.weight")
        ),
        norm("attn_norm", "input_layernorm"),
        ArraySpec("final_norm", "plain", (1, hidden), (("model.norm.weight",),), norm_offset),
    ]  # fmt: skip
    if spec.has_post_norms:
        arrays.append(norm("o_norm", "post_attention_layernorm"))
        arrays.append(norm("mlp_norm", "pre_feedforward_layernorm"))
        arrays.append(norm("down_norm", "post_feedforward_layernorm"))
    else:
        arrays.append(norm("mlp_norm", "post_attention_layernorm"))
    if not spec.is_tied:
        arrays.append(
            ArraySpec("head", "linear", (1, spec.vocab_size, hidden), (("lm_head.weight",),))
        )
    if spec.has_qkv_bias:
        sources = each(*(f"{x}.bias" for x in qkv))
        arrays.append(ArraySpec("qkv_bias", "plain", (layers, q + 2 * kv), sources))
    if spec.has_qk_norm:
        arrays.append(norm("q_norm", "self_attn.q_norm", spec.head_size))
        arrays.append(norm("k_norm", "self_attn.k_norm", spec.head_size))
    return tuple(arrays)
