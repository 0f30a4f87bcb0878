"""Write tiny random models of each family and their logits by transformers in f32.

Run in an environment of its own that has torch and transformers:
    python tests/parity/make_goldens.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf

GOLDENS = Path(__file__).parent / "goldens"
SIZES = dict(
    vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64, rope_theta=10000.0,
)  # fmt: skip
FAMILIES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)),
    "llama3": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=True)
    ),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**SIZES, sliding_window=16, head_dim=32)
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, head_dim=32)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **SIZES, head_dim=32, sliding_window=16, query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
}  # fmt: skip


def main() -> None:
    for name, make in FAMILIES.items():
        torch.manual_seed(len(name))
        model = make().float().eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                noise = torch.randn_like(value)
                value.copy_(noise * (0.3 if "norm" in key or "bias" in key else 0.1))
                if "norm" in key and name != "gemma3":
                    value.add_(1.0)
        folder = GOLDENS / name
        model.to(torch.bfloat16).save_pretrained(folder)
        # Read back: a cast of the model in place would round its rope frequencies too.
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.randint(3, SIZES["vocab_size"], (1, 70))
        with torch.no_grad():
            logits = model(ids).logits[0].numpy()
        np.savez_compressed(folder / "golden.npz", ids=ids[0].numpy(), logits=logits)
        print(name, logits.shape, float(np.abs(logits).max()))


if __name__ == "__main__":
    main()
