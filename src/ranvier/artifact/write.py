"""Write an artifact: under a lock, into a folder of its own, ended by one atomic rename.

Programs finished by an earlier, killed build are reused when their recorded hashes hold. A finished
artifact is never changed and never deleted here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranvier.artifact.manifest import (
    ArrayEntry,
    ArtifactKey,
    FileEntry,
    Manifest,
    ProgramEntry,
    canonical,
)
from ranvier.artifact.read import MANIFEST, check_file

__all__ = ["ArtifactWriter", "locked"]

ALIGN = 4096
RECORD = "finished.json"


@contextmanager
def locked(root: Path, key: ArtifactKey, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold the key's lock between processes; says so when another holds it."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{key.name}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"another process builds {key.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ArtifactWriter:
    """One build of one key; used within `locked`."""

    def __init__(self, root: Path, key: ArtifactKey) -> None:
        self.key = key
        self.folder = root / f"{key.name}.building"
        self.final = root / key.name
        (self.folder / "programs").mkdir(parents=True, exist_ok=True)
        self._files: dict[str, FileEntry] = {}
        self._arrays: dict[str, ArrayEntry] = {}
        self._programs: list[ProgramEntry] = []
        self._record = self._read_record()

    def reuse_program(self, program: ProgramEntry) -> bool:
        """Take over a program that an earlier build finished, if its files are whole."""
        names = _program_files(program.name)
        entries = {name: self._record.get(name) for name in names}
        if any(e is None or check_file(self.folder, n, e) for n, e in entries.items()):
            return False
        self._files.update({n: e for n, e in entries.items() if e is not None})
        self._programs.append(program)
        return True

    def add_program(self, program: ProgramEntry, stablehlo: bytes, binary: bytes) -> None:
        for name, data in zip(_program_files(program.name), (stablehlo, binary), strict=True):
            self.add_file(name, data)
        self._programs.append(program)
        self._record.update(self._files)
        self._write(RECORD, json.dumps(msgspec.to_builtins(self._record)).encode())

    def add_file(self, name: str, data: bytes) -> None:
        self._write(name, data)
        self._files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def add_weights(self, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Stream arrays into weights.bin, each at a page-aligned offset."""
        digest, offset = hashlib.sha256(), 0
        path = self.folder / "weights.bin"
        with path.open("wb") as file:
            for name, array in arrays:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                padding = bytes(-len(data) % ALIGN)
                for part in (data.data, padding):
                    file.write(part)
                    digest.update(part)
                shape, dtype = tuple(array.shape), array.dtype.name
                self._arrays[name] = ArrayEntry(dtype, shape, offset, len(data))
                offset += len(data) + len(padding)
            file.flush()
            os.fsync(file.fileno())
        self._files["weights.bin"] = FileEntry(offset, digest.hexdigest())

    def finish(self, model: dict[str, Any]) -> Path:
        """Write the manifest and rename the folder into place."""
        (self.folder / RECORD).unlink(missing_ok=True)
        manifest = Manifest(
            key=self.key,
            programs=sorted(self._programs, key=lambda p: p.tokens),
            arrays=dict(sorted(self._arrays.items())),
            files=dict(sorted(self._files.items())),
            model=model,
        )
        self._write(MANIFEST, canonical(manifest))
        os.rename(self.folder, self.final)
        return self.final

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _read_record(self) -> dict[str, FileEntry]:
        try:
            data = (self.folder / RECORD).read_bytes()
            return msgspec.json.decode(data, type=dict[str, FileEntry])
        except (OSError, msgspec.DecodeError):
            return {}


def _program_files(name: str) -> tuple[str, str]:
    return f"programs/{name}.stablehlo", f"programs/{name}.bin"
