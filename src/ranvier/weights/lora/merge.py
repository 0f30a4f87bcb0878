"""Merge an adapter into its model: W + B A, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.lora.read import Lora

__all__ = ["merged_config", "merged_tensors"]

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
FLOATS = {np.dtype(kind) for kind in DTYPES.values()} | {np.dtype(np.float64)}


def merged_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of the merged model: dense, in the model's dtype. Raises CheckpointError."""
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    name = config.get("dtype", config.get("torch_dtype")) or "bfloat16"
    if name not in DTYPES:
        raise CheckpointError(f"config.json: dtype {name!r} is not supported.")
    return {**config, "dtype": name, "torch_dtype": name}


def merged_tensors(checkpoint: Checkpoint, lora: Lora) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor of the model, merged where the adapter changes it.

    A dense folder keeps each tensor's dtype; what was stored quantised, or in GGUF, becomes dense
    in the model's dtype. Cost: one tensor in f32 at a time.
    """
    is_folder = checkpoint.path.is_dir() and checkpoint.quantisation is None
    model = DTYPES[merged_config(checkpoint)["dtype"]]
    for name in checkpoint.tensor_names():
        array = checkpoint.read(name)
        if array.dtype not in FLOATS:
            yield name, array
            continue
        kind = array.dtype if is_folder else model
        pair = lora.pairs.get(name.removesuffix(".weight"))
        if pair is not None:
            array = array.astype(np.float32) + pair.b @ pair.a
        yield name, array.astype(kind, copy=False)
