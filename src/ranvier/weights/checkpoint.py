"""Checkpoint: one way to read a model, whatever its files.

Config and tensors by Hugging Face's names. Opens nothing outside the model's folder.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.safetensors import SafetensorsFile

__all__ = ["Checkpoint", "FolderCheckpoint", "open_checkpoint"]

JSON_BYTES_MAX = 64 * 2**20


class Checkpoint(Protocol):
    """What the build and the text layer read of a model."""

    path: Path

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def tokenizer_config(self) -> dict[str, Any]: ...
    @property
    def generation_config(self) -> dict[str, Any]: ...
    @property
    def revision(self) -> str: ...
    def tokenizer_json(self) -> str: ...
    def tensor_names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> NDArray[Any]: ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file. Raises CheckpointError."""
    if path.is_dir():
        return FolderCheckpoint(path)
    if path.suffix == ".gguf" and path.is_file():
        from ranvier.weights.gguf_checkpoint import GgufCheckpoint

        return GgufCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder.")
    raise CheckpointError(
        f"{path}: not a model.", hint="Give a Hugging Face folder or a .gguf file."
    )


class FolderCheckpoint:
    """A Hugging Face folder: config.json, *.safetensors (one or sharded), tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = self._json("config.json", is_required=True)
        self.tokenizer_config = self._json("tokenizer_config.json")
        self.generation_config = self._json("generation_config.json")

    @cached_property
    def _files(self) -> dict[str, SafetensorsFile]:
        """The file that holds each tensor."""
        index = self._json("model.safetensors.index.json")
        names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
        files = [SafetensorsFile(self._inside(name)) for name in names]
        return {tensor: file for file in files for tensor in file.names()}

    @cached_property
    def revision(self) -> str:
        """Fingerprint of the weights: names, sizes and times of the files, and the config."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file in sorted({str(f.path) for f in self._files.values()}):
            stat = Path(file).stat()
            digest.update(f"{Path(file).name}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json. Raises CheckpointError when there is none."""
        path = self._inside("tokenizer.json")
        if not path.is_file():
            raise CheckpointError(f"{path}: the model has no tokenizer.json.")
        return path.read_text(encoding="utf-8")

    def tensor_names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file(name).shape(name)

    def read(self, name: str) -> NDArray[Any]:
        return self._file(name).read(name)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise CheckpointError(f"{self.path}: the checkpoint has no tensor {name!r}.")
        return self._files[name]

    def _inside(self, name: str) -> Path:
        """A file of the folder; a hub cache's links into its blobs are followed, nothing else."""
        if Path(name).name != name:
            raise CheckpointError(f"{self.path}: file name {name!r} leaves the model's folder.")
        path = self.path / name
        if path.is_symlink():
            target = path.resolve()
            blobs = self.path.resolve().parent.parent / "blobs"
            if not (target.is_relative_to(self.path.resolve()) or target.parent == blobs):
                raise CheckpointError(f"{path}: a link that leaves the model's folder.")
        return path

    def _json(self, name: str, *, is_required: bool = False) -> dict[str, Any]:
        path = self._inside(name)
        if not path.is_file():
            if is_required:
                raise CheckpointError(f"{path}: missing; a model folder needs it.")
            return {}
        if path.stat().st_size > JSON_BYTES_MAX:
            raise CheckpointError(f"{path}: larger than {JSON_BYTES_MAX} bytes.")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not valid JSON.") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: must hold a JSON object, holds {type(value).__name__}.")
        return value
