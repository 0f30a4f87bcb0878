"""Make goldens/*.safetensors: matrices as the `compressed-tensors` package stores and widens them.

Run with a python that has torch and compressed-tensors (0.20.0 was used):
    python tests/unit/weights/stored/make_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "goldens"
SHAPE = (48, 128)
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
FLOATS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
CASES = {
    "w4a16-group": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, None),
    "w4a16-group-asym": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False},
        None,
    ),
    "w4a16-channel-asym": (
        "pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}, None,
    ),
    "w8a16-channel": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, None),
    "w8a16-group-asym": (
        "pack-quantized",
        {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False},
        None,
    ),
    "w8a8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, TOKENS),
    "w8a16-naive": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}, None),
    "fp8-tensor": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, FLOATS,
    ),
    "fp8-channel": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, FLOATS,
    ),
    "fp8-block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 64]},
        None,
    ),
}  # fmt: skip


def extremes(weight, args):
    """Least and largest of each group that shares a scale."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        tall, wide = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % tall))
        blocks = padded.reshape(-(-rows // tall), tall, -(-columns // wide), wide)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = weight.reshape(rows, columns // args.group_size, args.group_size)
    return groups.amin(-1), groups.amax(-1)


def main():
    FOLDER.mkdir(exist_ok=True)
    for seed, (name, (form, weights, inputs)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        weight = torch.randn(SHAPE) * 0.05 + 0.01
        args = QuantizationArgs(**weights)
        activations = None if inputs is None else QuantizationArgs(**inputs)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=activations)
        scale, zero = calculate_qparams(*extremes(weight, args), args)
        state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(state, scheme)
        wide = compressor.decompress(dict(stored), scheme)["weight"]
        kept = compressor.compression_param_names(scheme)
        tensors = {key: value.contiguous() for key, value in stored.items() if key in kept}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"0": group},
        }
        tensors["values"] = wide.float().contiguous()
        path = FOLDER / f"{name}.safetensors"
        save_file(tensors, path, {"quantization_config": json.dumps(config)})
        print(path.name, {key: tuple(value.shape) for key, value in tensors.items()})


if __name__ == "__main__":
    main()
