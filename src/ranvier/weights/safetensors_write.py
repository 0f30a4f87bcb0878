"""Write safetensors files, and whole models as Hugging Face folders.

numpy only: the base install has no safetensors package. The tests read the files with it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.safetensors import DTYPES

__all__ = ["save_model", "save_safetensors", "save_shards"]

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


def save_model(
    output: Path,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, NDArray[Any]]],
) -> int:
    """Write a model's folder, whole or not at all, with the text side of another.

    The bytes of its tensors. Raises ConfigError: something is there already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: exists and is not an empty folder.")
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        size = save_shards(part, tensors)
        _write_text(part, checkpoint, config)
        if output.is_dir():
            output.rmdir()
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return size


def _write_text(folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Config, tokenizer and generation files."""
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", **checkpoint.tokenizer_config}
    generation = {k: v for k, v in checkpoint.generation_config.items() if v is not None}
    files = {
        "config.json": json.dumps(config, indent=2),
        "tokenizer.json": checkpoint.tokenizer_json(),
        "tokenizer_config.json": json.dumps(tokenizer, indent=2, ensure_ascii=False),
        "generation_config.json": json.dumps(generation, indent=2),
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
