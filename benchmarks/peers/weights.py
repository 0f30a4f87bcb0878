"""The same weights for every engine: a Hugging Face folder in bf16, and GGUF files of one format.

Reads a model as Ranvier does; for bf16 every tensor is rounded once. The quantised files are made
of the same source by llama.cpp's own quantiser. A GGUF source keeps its own metadata. Each form is
made when first asked for. Runs in Ranvier's environment with the packages safetensors and gguf (the
extra `dev`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from environment import PEERS, ensure
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ranvier.cli.quantisation import DENSE
from ranvier.cli.wire import locate
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint
from ranvier.weights.quantise.scheme import SCHEMES
from ranvier.weights.quantise.selection import select

__all__ = ["FORMS", "Weights"]

BF16 = np.dtype(ml_dtypes.bfloat16)
FORMS = {"bf16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
"""GGUF formats, and the bits that a weight of a matrix takes with its share of the scale."""


@dataclass(frozen=True)
class Weights:
    """One model in every form, under `root`, and what a decode step must read of it."""

    source: Path
    root: Path

    @classmethod
    def of(cls, model: str, cache: Path) -> Weights:
        """Those of a .gguf file or a demo model, in a folder of their own under `cache`."""
        source = locate(model)
        if source.suffix != ".gguf":
            raise SystemExit(f"compare: {source}: name a .gguf file or a demo model.")
        stat = source.stat()
        seen = f"{source}:{stat.st_size}:{stat.st_mtime_ns}:2"
        key = hashlib.sha256(seen.encode()).hexdigest()
        return cls(source, cache / "weights" / f"{source.stem}-{key[:10]}")

    def folder(self) -> Path:
        """A Hugging Face folder in bf16."""
        return self._made("hf", lambda target: _write_folder(open_checkpoint(self.source), target))

    def gguf(self, form: str) -> Path:
        """A GGUF file whose matrices all have this format, one of FORMS."""
        if form == "bf16":
            return self._made("bf16.gguf", lambda target: _write_gguf(self.source, target))
        return self._made(f"{form}.gguf", lambda target: _requantise(self.source, target, form))

    def step_bytes(self, form: str, scheme: str | None = None) -> int:
        """Bytes of every weight that one decode step reads (a gathered embedding is not).

        `scheme`: what `form` is quantised to while loading, if anything.
        """
        checkpoint = open_checkpoint(self.source)
        names = set(checkpoint.tensor_names())
        gathered = {"model.embed_tokens.weight"} if "lm_head.weight" in names else set()
        chosen = select(names, SCHEMES[scheme], with_head=True) if scheme in SCHEMES else {}
        stored = FORMS["bf16" if scheme == DENSE else form]
        bits = 0.0
        for name in names - gathered:
            shape = checkpoint.shape(name)
            each = stored if len(shape) == 2 else FORMS["bf16"]
            if name in chosen:
                each, group = chosen[name].bits, chosen[name].group
                each += 16 / group if group else 32 / shape[1]
            bits += each * int(np.prod(shape))
        return round(bits / 8)

    @property
    def kv_bytes(self) -> int:
        """KV bytes of one token of context, in bf16."""
        config = open_checkpoint(self.source).config
        heads, size = int(config["num_key_value_heads"]), int(config["head_dim"])
        return 2 * int(config["num_hidden_layers"]) * heads * size * BF16.itemsize

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """`root/name`, made whole or not at all."""
        target = self.root / name
        if not target.exists():
            print(f"compare: writing {target}, once", file=sys.stderr, flush=True)
            making = self.root / f"making-{name}"
            shutil.rmtree(making, ignore_errors=True)
            making.unlink(missing_ok=True)
            self.root.mkdir(parents=True, exist_ok=True)
            make(making)
            os.replace(making, target)
        return target


def _write_folder(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
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


def _requantise(source: Path, target: Path, form: str) -> None:
    """By llama.cpp itself, in its own environment."""
    script = Path(__file__).with_name("requantise.py")
    command = [str(ensure(PEERS["llama"])), str(script), str(source), str(target), form]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise SystemExit(f"compare: llama.cpp did not requantise {source} to {form}:\n{last}")


def _rounded(value: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(value.astype(np.float32).astype(BF16))
