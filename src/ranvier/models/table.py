"""Which architectures are served: a literal table from config.json's name to its resolver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models import gemma3, llama
from ranvier.models.spec import DecoderSpec
from ranvier.models.vision.llava import llava
from ranvier.models.vision.llava_next import llava_next
from ranvier.models.vision.mllama import mllama
from ranvier.models.vision.qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from ranvier.models.vision.siglip import gemma3_vision, idefics3

__all__ = ["ARCHITECTURES", "resolve"]

ARCHITECTURES: dict[str, Callable[[dict[str, Any]], DecoderSpec]] = {
    "LlamaForCausalLM": llama.llama,
    "MistralForCausalLM": llama.mistral,
    "Qwen2ForCausalLM": llama.qwen2,
    "Qwen3ForCausalLM": llama.qwen3,
    "Gemma3ForCausalLM": gemma3.gemma3,
    "Gemma3ForConditionalGeneration": gemma3_vision,
    "Idefics3ForConditionalGeneration": idefics3,
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava_next,
    "MllamaForConditionalGeneration": mllama,
    "Qwen2VLForConditionalGeneration": qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": qwen3_vl,
    "SmolVLMForConditionalGeneration": idefics3,
}


WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError)


def resolve(config: dict[str, Any]) -> DecoderSpec:
    """The spec of a checkpoint's config. Raises CheckpointError that lists what is supported."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise CheckpointError("config.json: architectures is missing or empty.")
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            try:
                return ARCHITECTURES[name](config)
            except WRONG_SHAPE as error:  # a field of another type or form than the family's
                reason = f"{type(error).__name__}: {error}"
                raise CheckpointError(f"config.json: no valid {name} config: {reason}.") from error
    raise CheckpointError(
        f"config.json: the architecture {', '.join(map(str, names))} is not supported.",
        hint=f"Supported: {', '.join(ARCHITECTURES)}.",
    )
