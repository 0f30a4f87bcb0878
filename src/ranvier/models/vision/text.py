"""The text side of a model that sees pictures, by text_config's model_type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ranvier.core.errors import CheckpointError
from ranvier.models import gemma3, llama
from ranvier.models.spec import DecoderSpec

__all__ = ["text_side"]

LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What writers leave out of a text_config because it is the class's default."""
MISTRAL = {
    **LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096,
    "max_position_embeddings": 4096 * 32,
}  # fmt: skip
QWEN2 = {
    **LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
}  # fmt: skip
GEMMA3 = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
}  # fmt: skip

SIDES: dict[str, tuple[Callable[[dict[str, Any]], DecoderSpec], Mapping[str, Any]]] = {
    "llama": (llama.llama, LLAMA),
    "mistral": (llama.mistral, MISTRAL),
    "qwen2": (llama.qwen2, QWEN2),
    "qwen3": (llama.qwen3, {}),
    "gemma3_text": (gemma3.gemma3, GEMMA3),
}


def text_side(fields: dict[str, Any], default: str = "llama") -> DecoderSpec:
    """The decoder of text_config. Raises CheckpointError that lists what is supported."""
    given = fields.get("text_config", {})
    kind = given.get("model_type", default)
    if kind not in SIDES:
        raise CheckpointError(
            f"config.json: a text side {kind!r} is not supported; supported: {', '.join(SIDES)}."
        )
    resolver, defaults = SIDES[kind]
    whole = {k: fields[k] for k in ("tie_word_embeddings",) if k in fields}
    for name in ("eos_token_id", "bos_token_id"):
        if given.get(name) is None and fields.get(name) is not None:
            whole[name] = fields[name]
    return resolver({**defaults, **given, **whole})
