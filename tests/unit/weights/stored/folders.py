"""Quantised folders for the tests: a config and one module's tensors."""

from __future__ import annotations

import json

from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.safetensors_write import save_safetensors

MODULE = "model.layers.0.mlp.down_proj"


def stored(folder, quantization_config, tensors, module=MODULE):
    """The checkpoint of a folder whose one quantised module has the tensors."""
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization_config}
    (folder / "config.json").write_text(json.dumps(config))
    named = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
    save_safetensors(folder / "model.safetensors", named)
    return open_checkpoint(folder)
