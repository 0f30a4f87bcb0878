"""Read a PEFT folder: every pair A, B of an adapter, checked against the model's linears.

Nothing is trusted: files are bounded before they are read, every fault is an AdapterError that
names file and tensor.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import AdapterError, CheckpointError
from ranvier.weights.lora.config import LoraConfig, read_config
from ranvier.weights.safetensors import SafetensorsFile

__all__ = ["Lora", "LoraPair", "read_lora"]

Float32Array = NDArray[np.float32]
Shape = tuple[int, int]

PREFIX = "base_model.model."
ENDS = {
    ".lora_A.weight": "A", ".lora_B.weight": "B",
    ".lora_A.default.weight": "A", ".lora_B.default.weight": "B",
}  # fmt: skip
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
HEADER_BYTES_MAX = 16 * 2**20
"""Beside the tensors."""


@dataclass(frozen=True)
class LoraPair:
    """What one linear gets: y += x A^T B^T. Shapes: a [r, inputs], b [outputs, r], scaled."""

    a: Float32Array
    b: Float32Array


@dataclass(frozen=True)
class Lora:
    """An adapter as its files have it: pairs by the modules' names in the checkpoint."""

    digest: str
    rank: int
    pairs: dict[str, LoraPair]


def read_lora(folder: Path, modules: Mapping[str, Shape], rank_max: int) -> Lora:
    """Read an adapter for a model whose linears are `modules`: name -> (outputs, inputs).

    Raises AdapterError.
    """
    config = read_config(folder)
    _check_targets(folder, config, modules)
    path = folder / "adapter_model.safetensors"
    content = _content(path, modules, rank_max)
    try:
        file = SafetensorsFile(path, content)
    except CheckpointError as error:
        raise AdapterError(error.message) from None
    found = _sort(path, file, modules)
    pairs, rank = {}, 0
    for name, sides in found.items():
        own = _rank(path, file, name, sides, modules[name])
        if own > rank_max:
            raise AdapterError(
                f"{path}: {name} has rank {own}, the limit is {rank_max}.",
                hint="Start with a larger --max-lora-rank.",
            )
        if own != config.rank_of(name):
            raise AdapterError(
                f"{path}: {name} has rank {own}, adapter_config.json says {config.rank_of(name)}."
            )
        a, b = (_values(path, file, sides[side]) for side in "AB")
        pairs[name] = LoraPair(a, b * np.float32(config.scale_of(name)))
        rank = max(rank, own)
    digest = hashlib.sha256(config.identity())
    digest.update(content)
    return Lora(digest.hexdigest(), rank, pairs)


def _content(path: Path, modules: Mapping[str, Shape], rank_max: int) -> bytes:
    """The file, read once: its tensors and its digest are of the same bytes."""
    bound = 4 * rank_max * sum(sum(shape) for shape in modules.values()) + HEADER_BYTES_MAX
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(bound + 1) if size <= bound else b""
    except FileNotFoundError:
        hint = "An adapter is a folder with adapter_config.json and adapter_model.safetensors."
        if path.with_suffix(".bin").exists():
            hint = "adapter_model.bin is a pickle, which is code: save it as safetensors with PEFT."
        raise AdapterError(f"{path}: there is no such file.", hint=hint) from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}.") from None
    size = max(size, len(content))
    if size > bound:
        raise AdapterError(
            f"{path}: {size} bytes; an adapter of rank {rank_max} for this model has at most "
            f"{bound}.",
        )
    return content


def _check_targets(folder: Path, config: LoraConfig, modules: Mapping[str, Shape]) -> None:
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise AdapterError(f"{folder}: {_unknown(target, modules)}", hint=_hint(modules))


def _unknown(name: str, modules: Mapping[str, Shape]) -> str:
    """What is wrong with a module that can't have an adapter."""
    last = name.rsplit(".", 1)[-1]
    if last in ("lm_head", "embed_tokens"):
        return f"{name}: adapters of embeddings and of the LM head are not supported."
    known = set(modules) if "." in name else {module.rsplit(".", 1)[-1] for module in modules}
    close = difflib.get_close_matches(name, known, 1)
    nearest = f" The nearest is {close[0]}." if close else ""
    return f"{name}: this model has no such linear for adapters.{nearest}"


def _hint(modules: Mapping[str, Shape]) -> str:
    names = dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules)
    return f"Adapters may change: {', '.join(names)}."


def _sort(
    path: Path, file: SafetensorsFile, modules: Mapping[str, Shape]
) -> dict[str, dict[str, str]]:
    """module -> side -> tensor. Raises AdapterError for everything that is no pair of a module."""
    found: dict[str, dict[str, str]] = {}
    for tensor in file.names():
        end = next((end for end in ENDS if tensor.endswith(end)), None)
        if end is None:
            raise AdapterError(
                f"{path}: {tensor} is no LoRA matrix of a linear: whole modules, embeddings, "
                "magnitudes (DoRA) and biases are not supported."
            )
        name = tensor.removesuffix(end).removeprefix(PREFIX)
        if name not in modules:
            raise AdapterError(f"{path}: {_unknown(name, modules)}", hint=_hint(modules))
        sides = found.setdefault(name, {})
        if ENDS[end] in sides:
            raise AdapterError(f"{path}: {name} has two matrices {ENDS[end]}.")
        sides[ENDS[end]] = tensor
    if not found:
        raise AdapterError(f"{path}: holds no tensors.")
    for name, sides in found.items():
        if len(sides) != 2:
            raise AdapterError(f"{path}: {name} has only lora_{next(iter(sides))}.")
    return found


def _rank(path: Path, file: SafetensorsFile, name: str, sides: dict[str, str], shape: Shape) -> int:
    a, b = file.shape(sides["A"]), file.shape(sides["B"])
    outputs, inputs = shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[1] != inputs or b[0] != outputs or not a[0]:
        raise AdapterError(
            f"{path}: {name} has A {list(a)} and B {list(b)}; this model takes A [rank, {inputs}] "
            f"and B [{outputs}, rank].",
            hint="Is it an adapter of another base model?",
        )
    return a[0]


def _values(path: Path, file: SafetensorsFile, tensor: str) -> Float32Array:
    raw: NDArray[Any] = file.read(tensor)
    if raw.dtype not in FLOATS:
        raise AdapterError(f"{path}: {tensor} is {raw.dtype}; supported: F32, F16, BF16.")
    values: Float32Array = raw.astype(np.float32)
    if not np.isfinite(values).all():
        raise AdapterError(f"{path}: {tensor} has values that are not finite.")
    return values
