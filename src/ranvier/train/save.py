"""Write a trained head as a folder in the published layout, without what it shares.

SafeAILab's names: midlayer.* for EAGLE-3, layers.0.* for EAGLE. `ranvier convert-eagle` adds the
embedding and the head for stacks that need them in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.models.eagle import EagleSpec
from ranvier.weights.safetensors_write import save_safetensors

__all__ = ["save_head"]

ARCHITECTURES = {"eagle": "EagleLlamaForCausalLM", "eagle3": "LlamaForCausalLMEagle3"}
MATRICES = {
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj", "attn_norm": "input_layernorm", "hidden_norm": "hidden_norm",
    "mlp_norm": "post_attention_layernorm",
}  # fmt: skip


def save_head(
    folder: Path,
    spec: EagleSpec,
    params: Mapping[str, NDArray[Any]],
    ids: NDArray[np.int32],
    target_config: Mapping[str, Any],
) -> int:
    """Write model.safetensors in bfloat16 and config.json; the bytes of the tensors.

    `ids`: the target's id of each id of the head. `target_config` lends the rope's fields.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(spec, params)
    if spec.is_reduced:
        is_known = np.zeros(spec.target_vocab, np.bool_)
        is_known[ids] = True
        tensors["d2t"] = ids.astype(np.int64) - np.arange(len(ids))
        tensors["t2d"] = is_known
    save_safetensors(folder / "model.safetensors", tensors)
    config = _config(spec, target_config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensors(spec: EagleSpec, params: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    layer = "midlayer." if spec.is_eagle3 else "layers.0."
    found = {"fc.weight": params["fc"].T}
    own = spec.decoder
    q, kv = own.heads * own.head_size, own.kv_heads * own.head_size
    for name, part in zip("qkv", np.split(params["qkv"].T, [q, q + kv]), strict=True):
        found[f"{layer}self_attn.{name}_proj.weight"] = part
    for name, stored in MATRICES.items():
        if name in params:
            found[f"{layer}{stored}.weight"] = params[name].T
    if spec.is_eagle3:
        found["norm.weight"] = params["norm"]
    return {
        name: np.ascontiguousarray(value).astype(ml_dtypes.bfloat16)
        for name, value in found.items()
    }


def _config(spec: EagleSpec, target: Mapping[str, Any]) -> dict[str, Any]:
    own = spec.decoder
    rope = ("rope_theta", "rope_scaling", "rope_parameters", "rope_freq_factors")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[spec.method]],
        "model_type": "llama",
        "hidden_size": own.hidden,
        "intermediate_size": own.intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": own.heads,
        "num_key_value_heads": own.kv_heads,
        "head_dim": own.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": own.norm_eps,
        "vocab_size": spec.target_vocab,
        "max_position_embeddings": own.model_len_max,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **{name: target[name] for name in rope if target.get(name) is not None},
    }
    if spec.is_eagle3:
        config["draft_vocab_size"] = spec.draft_vocab
        config["target_hidden_size"] = spec.target_hidden
        config["norm_before_residual"] = spec.norm_before_residual
        config["eagle_aux_hidden_state_layer_ids"] = list(spec.taps)
    return config
