"""Write random adapters of tiny models by PEFT, and what transformers generates with them in f32.

Run in an environment of its own that has torch, transformers and peft:
    python tests/parity/make_adapter_goldens.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

GOLDENS = Path(__file__).parent / "goldens"
ADAPTERS = Path(__file__).parent / "adapters"
COUNT = 8
CONFIGS = {
    ("llama", "all"): dict(r=4, lora_alpha=8, target_modules="all-linear"),
    ("llama", "patterns"): dict(
        r=3, lora_alpha=4, target_modules=r".*\.(q|v|down)_proj", use_rslora=True,
        rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 5},
        alpha_pattern={"v_proj": 12, r"layers\.0\.mlp\.down_proj": 7},
    ),
    ("qwen2", "qv"): dict(
        r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], fan_in_fan_out=True
    ),
    ("gemma3", "mlp"): dict(r=1, lora_alpha=3, target_modules=["gate_proj", "up_proj"]),
}  # fmt: skip


def main() -> None:
    for (family, name), config in CONFIGS.items():
        torch.manual_seed(len(name))
        model = hf.AutoModelForCausalLM.from_pretrained(GOLDENS / family, dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(**config, lora_dropout=0.1)).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_" in key:
                    value.copy_(0.3 * torch.randn_like(value))
        model.peft_config["default"].base_model_name_or_path = family
        folder = ADAPTERS / f"{family}-{name}"
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        ids = torch.randint(3, 160, (1, 20))
        tokens, logprobs = [], []
        with torch.no_grad():
            whole = ids
            for _ in range(COUNT):
                scores = model(input_ids=whole).logits[0, -1].log_softmax(-1)
                tokens.append(int(scores.argmax()))
                logprobs.append(float(scores.max()))
                whole = torch.cat([whole, torch.tensor([[tokens[-1]]])], 1)
        np.savez_compressed(
            folder / "golden.npz", ids=ids[0].numpy(), tokens=tokens, logprobs=logprobs
        )
        print(folder.name, tokens, [round(p, 3) for p in logprobs])


if __name__ == "__main__":
    main()
