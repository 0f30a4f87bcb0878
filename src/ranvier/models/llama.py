"""Llama 2 and 3.x, SmolLM2, and what shares their form: Mistral, Qwen2, Qwen3.

Each resolver turns a config into a DecoderSpec; the differences are flags of the spec.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config, decoder_arrays, rope_spec
from ranvier.models.spec import DecoderSpec

__all__ = ["llama", "mistral", "qwen2", "qwen3"]


def llama(fields: dict[str, Any]) -> DecoderSpec:
    """LlamaForCausalLM."""
    config = Config(fields)
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name, False):
            raise CheckpointError(f"config.json: {name}=true is not supported for Llama.")
    return _build(config, "llama", windows=_no_windows(config))


def mistral(fields: dict[str, Any]) -> DecoderSpec:
    """MistralForCausalLM, with its sliding window where the config has one."""
    config = Config(fields)
    window = config.get("sliding_window", 0)
    return _build(config, "mistral", windows=(int(window),) * config.count("num_hidden_layers"))


def qwen2(fields: dict[str, Any]) -> DecoderSpec:
    """Qwen2ForCausalLM (2 and 2.5): biases on q, k and v."""
    config = Config(fields)
    return _build(config, "qwen2", windows=_sliding(config), has_qkv_bias=True)


def qwen3(fields: dict[str, Any]) -> DecoderSpec:
    """Qwen3ForCausalLM: norms on the heads of q and k."""
    config = Config(fields)
    if config.get("attention_bias", False):
        raise CheckpointError("config.json: attention_bias=true is not supported for Qwen3.")
    return _build(config, "qwen3", windows=_sliding(config), has_qk_norm=True)


def _no_windows(config: Config) -> tuple[int, ...]:
    return (0,) * config.count("num_hidden_layers")


def _sliding(config: Config) -> tuple[int, ...]:
    """Qwen's windows: only with use_sliding_window, only from layer max_window_layers on."""
    if not config.get("use_sliding_window", False):
        return _no_windows(config)
    window, first = config.count("sliding_window"), int(config.get("max_window_layers", 0))
    return tuple(window if i >= first else 0 for i in range(config.count("num_hidden_layers")))


def _build(config: Config, family: str, *, windows: tuple[int, ...], **flags: Any) -> DecoderSpec:
    shape = config.shape()
    scaling = config.get("rope_parameters", config.get("rope_scaling", {}))
    theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    rope = rope_spec(config, shape["head_size"], theta=float(theta), scaling=scaling)
    spec = DecoderSpec(
        family=family,
        **shape,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.activation(),
        ropes=(rope,),
        ropes_of_layer=(0,) * shape["layers"],
        windows=windows,
        attention_scale=shape["head_size"] ** -0.5,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        end_token_ids=config.end_ids(),
        bos_token_id=config.get("bos_token_id"),
        **flags,
    )
    return dataclasses.replace(spec, arrays=decoder_arrays(spec))
