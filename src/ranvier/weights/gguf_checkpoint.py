"""A GGUF file as a Checkpoint: Hugging Face config, tensor names and conventions.

Two conventions of the GGUF converters are undone here: llama's q and k rows are permuted for
interleaved rope, and Gemma's norm weights carry the 1 of 1 + w.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.gguf import GgufFile
from ranvier.weights.gguf_tokenizer import tokenizer_json
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.revision import content_revision

__all__ = ["GgufCheckpoint"]

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
GEMMA_NAMES = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
FILE_TYPES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
}  # fmt: skip
"""general.file_type, where it tells a mixture of formats."""
WINDOW_PATTERN = 6
"""Gemma 3: every sixth layer attends to everything (its published config)."""


class GgufCheckpoint:
    """One .gguf file."""

    def __init__(self, path: Path, memo: Path | None = None) -> None:
        self.path = path
        self._memo = memo
        self._file = GgufFile(path)
        self._meta = self._file.metadata
        self._arch = str(self._meta.get("general.architecture"))
        if self._arch not in ARCHITECTURES:
            raise CheckpointError(
                f"{path}: general.architecture {self._arch!r} is not supported.",
                hint=f"Supported: {', '.join(ARCHITECTURES)}.",
            )
        self._names = {self._rename(name): name for name in self._file.names()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as Hugging Face would have it."""
        heads = self._number("attention.head_count")
        if "model.embed_tokens.weight" not in self._names:
            raise CheckpointError(f"{self.path}: the tensor token_embd.weight is missing.")
        hidden = self._number("embedding_length")
        config = {
            "architectures": [ARCHITECTURES[self._arch]],
            "model_type": self._arch,
            "vocab_size": self.shape("model.embed_tokens.weight")[0],
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": self._number("attention.key_length", hidden // max(heads, 1)),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", 10000.0),
            "tie_word_embeddings": "lm_head.weight" not in self._names,
            "eos_token_id": self._meta.get("tokenizer.ggml.eos_token_id"),
            "bos_token_id": self._meta.get("tokenizer.ggml.bos_token_id"),
        }
        if self._arch == "gemma3":
            config["sliding_window"] = self._number("attention.sliding_window", 512)
            config["sliding_window_pattern"] = WINDOW_PATTERN
            config["hidden_activation"] = "gelu_pytorch_tanh"
        if "rope_freqs.weight" in self._file.names():
            config["rope_freq_factors"] = self._file.read("rope_freqs.weight").tolist()
        return config

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        tokens = self._meta.get("tokenizer.ggml.tokens")
        tokens = tokens if isinstance(tokens, list) else []
        config = {
            "chat_template": self._meta.get("tokenizer.chat_template"),
            "add_bos_token": bool(self._meta.get("tokenizer.ggml.add_bos_token", False)),
        }
        for name in ("bos", "eos"):
            token = self._meta.get(f"tokenizer.ggml.{name}_token_id")
            if type(token) is int and 0 <= token < len(tokens):
                config[f"{name}_token"] = tokens[token]
        return config

    @property
    def generation_config(self) -> dict[str, Any]:
        return {"eos_token_id": self._meta.get("tokenizer.ggml.eos_token_id")}

    @cached_property
    def revision(self) -> str:
        """Fingerprint of the file by its content."""
        return content_revision([self.path], self._memo)

    def tokenizer_json(self) -> str:
        return tokenizer_json(self._meta, self.path)

    def tensor_names(self) -> list[str]:
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(self._source(name))

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in f32, in Hugging Face's convention."""
        values = self._file.read(self._source(name))
        order = self._row_order(name, values.shape[0])
        if order is not None:
            return values[order]
        if self._arch == "gemma3" and name.endswith("norm.weight"):
            return values - np.float32(1)
        return values

    def read_quantised(self, name: str) -> QuantTensor | None:
        """A matrix at its own width; None where it is stored dense. Raises CheckpointError."""
        found = self._file.read_quantised(self._source(name))
        order = None if found is None else self._row_order(name, found.shape[0])
        return found if found is None or order is None else found.take_rows(order)

    @property
    def quantisation(self) -> str | None:
        """The file's type as its quantiser named it; its formats where it does not say."""
        formats = self._file.formats()
        if not formats:
            return None
        kind = self._meta.get("general.file_type")
        named = FILE_TYPES.get(kind) if isinstance(kind, int) else None
        return f"gguf {named or '+'.join(sorted(formats))}"

    def _row_order(self, name: str, rows: int) -> NDArray[np.int64] | None:
        """Which rows of the file are a projection's rows, from interleaved rope pairs to halves."""
        heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
        field = next((field for part, field in heads.items() if part in name), None)
        if self._arch != "llama" or field is None:
            return None
        count = self.config[field]
        if rows % (2 * count):
            raise CheckpointError(
                f"{self.path}: {name} has {rows} rows, no multiple of 2 x {count} heads."
            )
        pairs = np.arange(rows).reshape(count, rows // count // 2, 2)
        return pairs.swapaxes(1, 2).reshape(-1)

    def _source(self, name: str) -> str:
        if name not in self._names:
            raise CheckpointError(f"{self.path}: the file has no tensor for {name!r}.")
        return self._names[name]

    def _number(self, key: str, default: Any = None) -> Any:
        value = self._meta.get(f"{self._arch}.{key}", default)
        if not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.path}: {self._arch}.{key} is {value!r}, not a number.")
        return value

    def _rename(self, name: str) -> str:
        if name in TOP_NAMES:
            return TOP_NAMES[name]
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk":
            table = {**NAMES, **(GEMMA_NAMES if self._arch == "gemma3" else {})}
            inner = table.get(parts[2], parts[2])
            return f"model.layers.{parts[1]}.{inner}.{parts[3]}"
        return name
