"""Which architectures are served: a literal table from config.json's name to its resolver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models import gemma3, llama
from ranvier.models.spec import DecoderSpec

__all__ = ["ARCHITECTURES", "resolve"]

ARCHITECTURES: dict[str, Callable[[dict[str, Any]], DecoderSpec]] = {
    "LlamaForCausalLM": llama.llama,
    "MistralForCausalLM": llama.mistral,
    "Qwen2ForCausalLM": llama.qwen2,
    "Qwen3ForCausalLM": llama.qwen3,
    "Gemma3ForCausalLM": gemma3.gemma3,
    "Gemma3ForConditionalGeneration": gemma3.gemma3,
}


def resolve(config: dict[str, Any]) -> DecoderSpec:
    """The spec of a checkpoint's config. Raises CheckpointError that lists what is supported."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise CheckpointError("config.json: architectures is missing or empty.")
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name](config)
    raise CheckpointError(
        f"config.json: the architecture {', '.join(map(str, names))} is not supported.",
        hint=f"Supported: {', '.join(ARCHITECTURES)}.",
    )
