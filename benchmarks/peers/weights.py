"""The same weights for every engine: a Hugging Face folder and a GGUF file, both in bf16.

Reads a model as Ranvier does and rounds every tensor to bf16 once; a GGUF source keeps its own
metadata. Runs in Ranvier's environment with the packages safetensors and gguf (the extra `dev`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ranvier.cli.wire import locate
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Weights", "make_weights"]

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Weights:
    """Where both forms are, and what a decode step must read of them."""

    folder: Path
    gguf: Path
    step_bytes: int
    """Bytes of every weight that one decode step reads (a gathered embedding is not)."""
    kv_bytes: int
    """KV bytes of one token of context."""


def make_weights(model: str, root: Path) -> Weights:
    """Both forms of a .gguf or demo model under `root`, made once."""
    source = locate(model)
    if source.suffix != ".gguf":
        raise SystemExit(f"compare: {source}: name a .gguf file or a demo model.")
    stat = source.stat()
    key = hashlib.sha256(f"{source}:{stat.st_size}:{stat.st_mtime_ns}:1".encode()).hexdigest()
    target = root / "weights" / f"{source.stem}-{key[:10]}"
    checkpoint = open_checkpoint(source)
    if not (target / "whole").is_file():
        print(f"compare: writing {target} in bf16, once", file=sys.stderr, flush=True)
        making = target.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        (making / "hf").mkdir(parents=True)
        _write_folder(checkpoint, making / "hf")
        _write_gguf(source, making / "model.gguf")
        (making / "whole").touch()
        shutil.rmtree(target, ignore_errors=True)
        os.replace(making, target)
    step, kv = _bytes(checkpoint)
    return Weights(target / "hf", target / "model.gguf", step, kv)


def _write_folder(checkpoint: Checkpoint, folder: Path) -> None:
    tensors = {name: _rounded(checkpoint.read(name)) for name in checkpoint.tensor_names()}
    tensors = {name: value for name, value in tensors.items() if name.startswith(("model.", "lm_"))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config, "torch_dtype": "bfloat16"}
    tokenizer = {**checkpoint.tokenizer_config, "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, value in (
        ("config", config),
        ("tokenizer_config", tokenizer),
        ("generation_config", checkpoint.generation_config),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")


def _write_gguf(source: Path, target: Path) -> None:
    """Every matrix in bf16; vectors in f32, as llama.cpp wants them, of bf16 values."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        is_own = field.name.startswith("GGUF.") or field.name == "general.architecture"
        if is_own or field.name == "general.file_type":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        value = _rounded(wide)
        if wide.ndim == 1:
            writer.add_tensor(tensor.name, value.astype(np.float32))
            continue
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(tensor.name, value.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rounded(value: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(value.astype(np.float32).astype(BF16))


def _bytes(checkpoint: Checkpoint) -> tuple[int, int]:
    config = checkpoint.config
    names = set(checkpoint.tensor_names())
    gathered = {"model.embed_tokens.weight"} if "lm_head.weight" in names else set()
    count = sum(int(np.prod(checkpoint.shape(name))) for name in names - gathered)
    heads, size = int(config["num_key_value_heads"]), int(config["head_dim"])
    kv = 2 * int(config["num_hidden_layers"]) * heads * size
    return count * BF16.itemsize, kv * BF16.itemsize
