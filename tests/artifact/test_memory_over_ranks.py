"""Ranks of one process share the host's memory: a model cut in four takes what it takes once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from tests.conftest import byte_tokenizer

from ranvier.weights.safetensors_write import save_safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
    "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 4096, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SCRIPT = """
import json, resource, sys
from ranvier import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
out = llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=4, temperature=0))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "tokens": out[0].outputs[0].token_ids}))
"""


def make(folder, layers):
    """A random model; its bytes."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return (0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)

    ones = np.ones(1024, ml_dtypes.bfloat16)
    tensors = {
        "model.embed_tokens.weight": random(4096, 1024), "lm_head.weight": random(4096, 1024),
        "model.norm.weight": ones,
    }  # fmt: skip
    shapes = {
        "self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (512, 1024),
        "self_attn.v_proj": (512, 1024), "self_attn.o_proj": (1024, 1024),
        "mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024), "mlp.down_proj": (1024, 4096),
    }  # fmt: skip
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}{name}.weight": random(*shape) for name, shape in shapes.items()}
        tensors[f"{at}input_layernorm.weight"] = ones
        tensors[f"{at}post_attention_layernorm.weight"] = ones
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    (folder / "tokenizer.json").write_text(byte_tokenizer(160))
    save_safetensors(folder / "model.safetensors", tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def run(model, artifacts, ranks):
    options = {
        "model": str(model), "artifacts": str(artifacts), "tensor_parallel_size": ranks,
        "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 32,
    }  # fmt: skip
    words = [sys.executable, "-c", SCRIPT, json.dumps(options)]
    ended = subprocess.run(words, capture_output=True, text=True, env=os.environ, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.long
def test_four_ranks_take_the_memory_of_one_model(tmp_path):
    size = {layers: make(tmp_path / f"layers{layers}", layers) for layers in (1, 8)}
    peaks = {}
    for layers in size:
        model = tmp_path / f"layers{layers}"
        run(model, tmp_path / "artifacts", 4)  # builds
        peaks[layers] = run(model, tmp_path / "artifacts", 4)
    more, weights = peaks[8]["peak"] - peaks[1]["peak"], size[8] - size[1]
    assert 0.8 * weights <= more <= 1.2 * weights, f"{more / weights:.2f} of the weights"
    assert len(peaks[8]["tokens"]) == 4
