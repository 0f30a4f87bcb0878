"""Gemma 3, text: alternating windows with a rope of their own, norms on both sides, 1 + w norms."""

from __future__ import annotations

import dataclasses
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config, decoder_arrays, rope_spec
from ranvier.models.spec import DecoderSpec, RopeSpec

__all__ = ["gemma3"]

GLOBAL, LOCAL = 0, 1


def gemma3(fields: dict[str, Any]) -> DecoderSpec:
    """Gemma3ForCausalLM; of Gemma3ForConditionalGeneration the text part."""
    config = Config(fields.get("text_config", fields))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name) is not None:
            raise CheckpointError(f"config.json: {name} is not supported for Gemma 3.")
    shape = config.shape()
    is_local = _is_local(config, shape["layers"])
    window = config.count("sliding_window", 4096)
    spec = DecoderSpec(
        family="gemma3",
        **shape,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.activation(),
        ropes=_ropes(config, shape["head_size"]),
        ropes_of_layer=tuple(LOCAL if local else GLOBAL for local in is_local),
        windows=tuple(window if local else 0 for local in is_local),
        attention_scale=config.number("query_pre_attn_scalar", shape["head_size"]) ** -0.5,
        embed_scale=shape["hidden"] ** 0.5,
        has_qk_norm=True,
        has_post_norms=True,
        is_tied=bool(config.get("tie_word_embeddings", True)),
        end_token_ids=config.end_ids(),
        bos_token_id=config.get("bos_token_id"),
    )
    return dataclasses.replace(spec, arrays=decoder_arrays(spec, norm_offset=1.0))


def _is_local(config: Config, layers: int) -> list[bool]:
    types = config.get("layer_types")
    if types is not None:
        if len(types) != layers:
            raise CheckpointError(
                f"config.json: layer_types has {len(types)} entries, num_hidden_layers is {layers}."
            )
        return [kind == "sliding_attention" for kind in types]
    every = config.count("sliding_window_pattern", 6)
    return [(i + 1) % every != 0 for i in range(layers)]


def _ropes(config: Config, head_size: int) -> tuple[RopeSpec, RopeSpec]:
    """The rope of full layers and that of windowed ones, in either spelling of the config."""
    both = config.get("rope_parameters", {})
    full = both.get("full_attention", config.get("rope_scaling", {}))
    local = both.get("sliding_attention", {})
    theta = full.get("rope_theta", config.get("rope_theta", 1e6))
    theta_local = local.get("rope_theta", config.get("rope_local_base_freq", 1e4))
    return (
        rope_spec(config, head_size, theta=float(theta), scaling=full),
        rope_spec(config, head_size, theta=float(theta_local), scaling=local),
    )
