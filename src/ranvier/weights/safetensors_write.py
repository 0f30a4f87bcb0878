"""Write safetensors files, and whole models as shards with their index.

numpy only: the base install has no safetensors package. The tests read the files with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.weights.safetensors import DTYPES

__all__ = ["save_safetensors", "save_shards"]

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
SHARD_BYTES = 2 * 2**30


def save_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one file and flush it to disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).view(np.uint8).reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())


def save_shards(
    folder: Path, tensors: Iterable[tuple[str, NDArray[Any]]], shard_bytes: int = SHARD_BYTES
) -> int:
    """Write model.safetensors, or shards with their index; the bytes of all tensors.

    Cost: holds one shard in memory.
    """
    shards: list[list[str]] = []
    held: dict[str, NDArray[Any]] = {}
    total = 0
    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
            save_safetensors(folder / f"shard-{len(shards)}", held)
            shards.append(list(held))
            held = {}
        held[name] = tensor
        total += tensor.nbytes
    if not shards:
        save_safetensors(folder / "model.safetensors", held)
        return total
    save_safetensors(folder / f"shard-{len(shards)}", held)
    shards.append(list(held))
    table: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        os.replace(folder / f"shard-{i}", folder / file)
        table |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total
