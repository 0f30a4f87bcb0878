"""PEFT folders for the tests: random adapters of given modules."""

from __future__ import annotations

import json

import numpy as np

from ranvier.weights.safetensors_write import save_safetensors

LLAMA = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64),
         "gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}  # fmt: skip
"""(outputs, inputs) of tests/parity/goldens/llama."""


def full_name(layer, name):
    part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{name}"


def modules_of(shapes, layers=3, names=None):
    """{module: (outputs, inputs)} of some linears of every layer."""
    wanted = names or shapes
    return {full_name(i, name): shapes[name] for i in range(layers) for name in wanted}


def random_tensors(modules, rank=8, seed=0, ranks=None, scale=1.0):
    """A and B of each module by PEFT's names; f32."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        r = (ranks or {}).get(name, rank)
        for side, shape in (("A", (r, inputs)), ("B", (outputs, r))):
            values = random.standard_normal(shape, np.float32) * scale / np.sqrt(shape[1])
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = values.astype(np.float32)
    return tensors


def save_adapter(folder, tensors, **config):
    """Write adapter_config.json and adapter_model.safetensors; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": None, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder
