"""Write a quantised model as a Hugging Face folder in the compressed-tensors convention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantise.selection import is_layer_linear, module_of
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.safetensors_write import save_model

__all__ = ["quantization_config", "write_folder"]

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}


def write_folder(
    output: Path,
    checkpoint: Checkpoint,
    schemes: dict[str, Scheme],
    made: Iterable[tuple[str, QuantTensor | NDArray[np.float32]]],
) -> int:
    """Write the folder, whole or not at all; the bytes of its tensors. Raises ConfigError.

    `made` gives the quantised tensors and dense ones that changed; all others are copied. Dense
    ones are written in the model's dtype.
    """
    config = dict(checkpoint.config)
    dtype = config.get("dtype", config.get("torch_dtype")) or "bfloat16"
    if dtype not in DTYPES:
        raise CheckpointError(f"config.json: dtype {dtype!r} is not supported.")
    config |= {"dtype": dtype, "torch_dtype": dtype}
    config["quantization_config"] = quantization_config(checkpoint, schemes)
    tensors = _tensors(checkpoint, schemes, made, DTYPES[dtype])
    return save_model(output, checkpoint, config, tensors)


def quantization_config(checkpoint: Checkpoint, schemes: dict[str, Scheme]) -> dict[str, Any]:
    """What compressed-tensors puts into config.json for these tensors.

    Requires: all in one scheme, with one group (selection.with_one_group).
    """
    some = next(iter(schemes.values()))
    form = {"fp8": "float-quantized"}.get(some.kind, "pack-quantized")
    if some.activation_bits == 8:
        form = "int-quantized"
    group = {
        "targets": ["Linear"],
        "weights": _arguments(some),
        "input_activations": TOKENS if some.activation_bits == 8 else None,
        "output_activations": None,
        "format": form,
    }
    names = checkpoint.tensor_names()
    kept = {module_of(name) for name in names if is_layer_linear(name) and name not in schemes}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(kept | {"lm_head"}),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _arguments(scheme: Scheme) -> dict[str, Any]:
    strategy = "tensor" if scheme.is_per_tensor else "channel"
    return {
        "num_bits": scheme.bits,
        "type": "float" if scheme.kind == "fp8" else "int",
        "strategy": "group" if scheme.group else strategy,
        "group_size": scheme.group or None,
        "symmetric": not scheme.is_asymmetric,
        "dynamic": False,
    }


def _tensors(
    checkpoint: Checkpoint,
    schemes: dict[str, Scheme],
    made: Iterable[tuple[str, QuantTensor | NDArray[np.float32]]],
    dtype: Any,
) -> Iterator[tuple[str, NDArray[Any]]]:
    changed = set()
    for name, tensor in made:
        if not isinstance(tensor, QuantTensor):
            changed.add(name)
            yield name, np.asarray(tensor, dtype)
            continue
        for suffix, array in _stored(tensor, schemes[name], dtype).items():
            yield f"{module_of(name)}.{suffix}", array
    for name in checkpoint.tensor_names():
        if name not in schemes and name not in changed:
            array = checkpoint.read(name)
            is_float = array.dtype.name in ("float32", "float16", "bfloat16", "float64")
            yield name, np.asarray(array, dtype) if is_float else array


def _stored(tensor: QuantTensor, scheme: Scheme, dtype: Any) -> dict[str, NDArray[Any]]:
    """The tensors of one module, by their suffixes."""
    assert tensor.scales is not None
    scales = tensor.scales.astype(dtype)
    if not np.array_equal(scales.astype(np.float32), tensor.scales):
        scales = tensor.scales  # float16 has too little range for some
    if scheme.kind == "fp8":
        weight = tensor.codes.view(ml_dtypes.float8_e4m3fn)
        return {"weight": weight, "weight_scale": scales[:1, 0] if scheme.is_per_tensor else scales}
    if scheme.activation_bits == 8:
        return {"weight": tensor.codes, "weight_scale": scales}
    unsigned = tensor.codes.view(np.uint8) ^ np.uint8(128 if tensor.bits == 8 else 0)
    found: dict[str, NDArray[Any]] = {
        "weight_packed": _packed(unsigned, tensor.bits),
        "weight_scale": scales,
        "weight_shape": np.asarray(tensor.shape, np.int64),
    }
    if tensor.zeros is not None:
        found["weight_zero_point"] = np.ascontiguousarray(_packed(tensor.zeros.T, tensor.bits).T)
    return found


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Unsigned numbers in int32 words along the last axis, low bits first, padded with 0."""
    count = 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % count)))
    wide = padded.reshape(codes.shape[0], -1, count).astype(np.uint32)
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(wide << shifts, -1)
    return np.asarray(words.view(np.int32))
