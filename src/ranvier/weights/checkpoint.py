"""Checkpoint: one way to read a model, whatever its files.

Config and tensors by Hugging Face's names. Opens nothing outside the model's folder.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.folder import ModelFolder
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.revision import content_revision
from ranvier.weights.safetensors import SafetensorsFile
from ranvier.weights.stored.folder import QuantisedTensors
from ranvier.weights.stored.table import stored_convention

__all__ = ["Checkpoint", "FolderCheckpoint", "open_checkpoint"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS_MAX = 4096
TEXT_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


class Checkpoint(Protocol):
    """What the build and the text layer read of a model.

    `read` gives dense values, also of what is stored quantised; `read_quantised` gives a matrix at
    its own width, None where it is stored dense. `quantisation` is the scheme's short name, for
    keys and logs; None where all is dense.
    """

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
    def read_quantised(self, name: str) -> QuantTensor | None: ...
    @property
    def quantisation(self) -> str | None: ...


def open_checkpoint(path: Path, memo: Path | None = None) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file. Raises CheckpointError.

    `memo`: a folder in which hashes of unchanged files are remembered.
    """
    if path.is_dir():
        return FolderCheckpoint(path, memo)
    if path.suffix == ".gguf" and path.is_file():
        from ranvier.weights.gguf_checkpoint import GgufCheckpoint

        return GgufCheckpoint(path, memo)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder.")
    raise CheckpointError(
        f"{path}: not a model.", hint="Give a Hugging Face folder or a .gguf file."
    )


class FolderCheckpoint:
    """A Hugging Face folder: config.json, *.safetensors (one or sharded), tokenizer.json."""

    def __init__(self, path: Path, memo: Path | None = None) -> None:
        self.path = path
        self._folder = ModelFolder(path)
        self._memo = memo
        self.config = self._folder.fields("config.json", is_required=True)
        self.tokenizer_config = self._folder.tokenizer_config
        self.generation_config = self._folder.fields("generation_config.json")

    @cached_property
    def _files(self) -> dict[str, SafetensorsFile]:
        """The file that holds each tensor."""
        index = self._index()
        names = sorted(set(index.values())) if index else [SINGLE]
        found: dict[str, SafetensorsFile] = {}
        for name in names:
            file = SafetensorsFile(self._weights(name))
            for tensor in file.names():
                if tensor in found:
                    other = found[tensor].path.name
                    raise CheckpointError(f"{file.path}: tensor {tensor!r} is in {other} too.")
                found[tensor] = file
        for tensor, name in index.items():
            if tensor not in found or found[tensor].path.name != name:
                raise CheckpointError(f"{self.path / INDEX}: {tensor!r} is not in {name}.")
        return found

    @cached_property
    def revision(self) -> str:
        """Fingerprint of the weights and of the text side, by content."""
        files = {file.path for file in self._files.values()}
        present = (self._folder.inside(name) for name in TEXT_FILES)
        return content_revision(files | {path for path in present if path.is_file()}, self._memo)

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json. Raises CheckpointError when there is none."""
        return self._folder.tokenizer_json()

    def tensor_names(self) -> list[str]:
        return self._quantised.names() if self._quantised else sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._quantised.shape(name) if self._quantised else self._file(name).shape(name)

    def read(self, name: str) -> NDArray[Any]:
        return self._quantised.read(name) if self._quantised else self._file(name).read(name)

    def read_quantised(self, name: str) -> QuantTensor | None:
        """A matrix at its own width, by quantization_config. Raises CheckpointError."""
        return self._quantised.read_quantised(name) if self._quantised else None

    @property
    def quantisation(self) -> str | None:
        return self._quantised.name if self._quantised else None

    @cached_property
    def _quantised(self) -> QuantisedTensors | None:
        stored = stored_convention(self.config)
        return None if stored is None else QuantisedTensors(stored, _Raw(self))

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise CheckpointError(f"{self.path}: the checkpoint has no tensor {name!r}.")
        return self._files[name]

    def _index(self) -> dict[str, str]:
        """Tensor to file name, empty for a model in one file."""
        fields = self._folder.fields(INDEX)
        if not fields:
            return {}
        table = fields.get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise CheckpointError(f"{self.path / INDEX}: weight_map must map tensors to files.")
        count = len(set(table.values()))
        if not 0 < count <= SHARDS_MAX:
            raise CheckpointError(
                f"{self.path / INDEX}: weight_map names {count} files, must be 1 to {SHARDS_MAX}."
            )
        return table

    def _weights(self, name: str) -> Path:
        path = self._folder.inside(name)
        if path.is_file():
            return path
        others = sorted(p.name for p in self.path.glob("*.bin")) + sorted(
            p.name for p in self.path.glob("*.pt*")
        )
        hint = f"{others[0]} holds pickles, which are never read." if others else ""
        raise CheckpointError(f"{path}: missing; the weights of a model folder.", hint=hint)


class _Raw:
    """The tensors of a folder as they are stored."""

    def __init__(self, folder: FolderCheckpoint) -> None:
        self._folder = folder

    def names(self) -> Collection[str]:
        return self._folder._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._folder._file(name).shape(name)

    def read(self, name: str) -> NDArray[Any]:
        return self._folder._file(name).read(name)
