"""Write tiny random models that see pictures, and what transformers makes of them in f32.

Run in an environment of its own that has torch and transformers:
    python tests/parity/make_vision_goldens.py [family ...]

Pixels are not stored: `pixels(seed, shape)` gives the same numbers here and in the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

GOLDENS = Path(__file__).parent / "vision_goldens"
IMAGE = 5
NEW_TOKENS = 6
TEXT = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
    head_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
VIT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip


def pixels(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def prompt(seed: int, parts: list[int]) -> np.ndarray:
    """Text of n tokens for n > 0, n placeholders for n < 0."""
    rng = np.random.default_rng(100 + seed)
    return np.concatenate(
        [rng.integers(10, 128, n) if n > 0 else np.full(-n, IMAGE) for n in parts]
    )


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VIT), text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
    )  # fmt: skip
    cases = {
        "one": dict(parts=[4, -16, 9], images=[dict(shape=(1, 3, 16, 16))]),
        "two": dict(parts=[3, -16, 5, -16, 7], images=[dict(shape=(1, 3, 16, 16))] * 2),
    }
    return hf.LlavaForConditionalGeneration(config), cases, _tiles


def _tiles(model, images):
    return dict(pixel_values=torch.cat([torch.tensor(i["pixels"]) for i in images]))


FAMILIES = {"llava": llava}


def randomise(model, name):
    """Weights of some size; they are bfloat16 numbers, as most checkpoints' are."""
    torch.manual_seed(len(name))
    with torch.no_grad():
        for key, value in model.named_parameters():
            is_norm = "norm" in key or "ln_" in key
            value.copy_(torch.randn_like(value) * (0.3 if is_norm or "bias" in key else 0.15))
            if is_norm and key.endswith("weight") and not key.startswith("gemma"):
                value.add_(1.0)
            if "gate" in key and value.numel() == 1:
                value.copy_(torch.full_like(value, 0.7))


def run(model, case, seed, prepare):
    images = [
        {**image, "pixels": pixels(10 * seed + i, image["shape"])}
        for i, image in enumerate(case["images"])
    ]
    ids = torch.tensor(prompt(seed, case["parts"]))[None]
    inputs = prepare(model, images) if images else {}
    types = (ids == IMAGE).int()
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = types
    with torch.no_grad():
        out = model(ids, **inputs)
        made = model.generate(
            ids, **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones_like(ids),
        )  # fmt: skip
    found = {"ids": ids[0].numpy(), "logits": out.logits[0, -16:].numpy(),
             "tokens": made[0, ids.shape[1]:].numpy()}  # fmt: skip
    if images:
        found["features"] = features(model, inputs)
    return found


def features(model, inputs):
    """Features of all pictures, one below the other."""
    given = {k: v for k, v in inputs.items() if k not in ("mm_token_type_ids", "token_type_ids")}
    with torch.no_grad():
        out = model.model.get_image_features(**given)
    pooled = out.pooler_output
    if not isinstance(pooled, torch.Tensor):
        pooled = torch.cat([p.reshape(-1, p.shape[-1]) for p in pooled])
    return pooled.reshape(-1, pooled.shape[-1]).numpy()


def main() -> None:
    for name in sys.argv[1:] or FAMILIES:
        model, cases, prepare = FAMILIES[name]()
        model = model.float().eval()
        randomise(model, name)
        folder = GOLDENS / name
        model.to(torch.bfloat16).save_pretrained(folder)
        # Read back: a cast of the model in place would round its rope frequencies too.
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        cases = {"none": dict(parts=[12], images=[]), **cases}
        found = {}
        for seed, (label, case) in enumerate(cases.items()):
            for key, value in run(model, case, seed, prepare).items():
                found[f"{label}/{key}"] = value
            print(name, label, found[f"{label}/tokens"], float(np.abs(value).max()))
        np.savez_compressed(folder / "golden.npz", **found)
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
