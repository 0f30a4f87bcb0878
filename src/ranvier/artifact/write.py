"""Write an artifact: under a lock, into a folder of its own, ended by one atomic rename.

Programs finished by an earlier, killed build are reused when their recorded hashes hold. A finished
artifact is never changed; one that was found damaged is replaced whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranvier.artifact.manifest import (
    PART_BYTES,
    ArrayEntry,
    ArtifactKey,
    FileEntry,
    Manifest,
    ProgramEntry,
    canonical,
    join_hashes,
    weights_file,
)
from ranvier.artifact.read import MANIFEST, check_file, read_manifest

__all__ = ["ArtifactWriter", "amend", "file_entry", "set_aside"]

ALIGN = 4096
RECORD = "finished.json"
CHUNK = 2**22
COMPLETED_BY = "ranvier compile --finish DIR, DIR being this folder"


class ArtifactWriter:
    """One build of one key; used within `locked`."""

    def __init__(
        self, root: Path, key: ArtifactKey, suffixes: tuple[str, str] = ("stablehlo", "bin")
    ) -> None:
        self.key = key
        self._suffixes = suffixes
        self.folder = root / f"{key.name}.building"
        self.final = root / key.name
        (self.folder / "programs").mkdir(parents=True, exist_ok=True)
        self._files: dict[str, FileEntry] = {}
        self._arrays: dict[str, ArrayEntry] = {}
        self._programs: list[ProgramEntry] = []
        self._record = self._read_record()

    def reuse_program(self, program: ProgramEntry) -> bool:
        """Take over a program that an earlier build finished, if its files are whole."""
        names = self._program_files(program.name)
        entries = {name: self._record.get(name) for name in names}
        if any(e is None or check_file(self.folder, n, e) for n, e in entries.items()):
            return False
        self._files.update({n: e for n, e in entries.items() if e is not None})
        self._programs.append(program)
        return True

    def add_program(self, program: ProgramEntry, stablehlo: bytes, binary: bytes) -> None:
        for name, data in zip(self._program_files(program.name), (stablehlo, binary), strict=True):
            self.add_file(name, data)
        self._programs.append(program)
        self._record.update(self._files)
        self._write(RECORD, json.dumps(msgspec.to_builtins(self._record)).encode())

    def add_file(self, name: str, data: bytes) -> None:
        self._write(name, data)
        digest = _Digest()
        digest.update(data)
        self._files[name] = FileEntry(len(data), digest.hex())

    def add_weights(
        self, arrays: Iterable[tuple[str, Sequence[NDArray[Any]]]]
    ) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Stream (name, each rank's array of one shape) into the ranks' files, page-aligned.

        Returns the shapes and dtypes of a rank's arrays.
        """
        ranks, offset = self.key.ranks, 0
        found = {}
        with ExitStack() as stack:
            names = [weights_file(rank, ranks) for rank in range(ranks)]
            files = [stack.enter_context(_HashedFile(self.folder / name)) for name in names]
            for name, parts in arrays:
                shape, dtype = tuple(parts[0].shape), parts[0].dtype
                for part, file in zip(parts, files, strict=True):
                    assert (part.shape, part.dtype) == (shape, dtype), name
                    size = file.add(part)
                self._arrays[name] = ArrayEntry(dtype.name, shape, offset, size)
                found[name] = (shape, dtype)
                offset = files[0].size
        self._files.update({n: file.entry() for n, file in zip(names, files, strict=True)})
        return found

    def take_over(self, folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
        """Link (or copy) whole files, and the tables, from another artifact of this key."""
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(folder / name, target)
            except OSError:
                shutil.copyfile(folder / name, target)
            self._files[name] = manifest.files[name]
        self._arrays = dict(manifest.arrays)
        self._programs = list(manifest.programs)

    def finish(self, model: dict[str, Any], missing: dict[str, str] | None = None) -> Path:
        """Write the manifest and rename the folder into place."""
        (self.folder / RECORD).unlink(missing_ok=True)
        manifest = Manifest(
            key=self.key,
            programs=sorted(self._programs, key=_order),
            arrays=dict(sorted(self._arrays.items())),
            files=dict(sorted(self._files.items())),
            model=model,
            missing=dict(sorted((missing or {}).items())),
            completed_by=COMPLETED_BY if missing else "",
        )
        self._write(MANIFEST, canonical(manifest.signed()))
        trash = set_aside(self.final)
        os.rename(self.folder, self.final)
        shutil.rmtree(trash, ignore_errors=True)
        _sync_folder(self.final.parent)
        return self.final

    def _program_files(self, name: str) -> list[str]:
        return [f"programs/{name}.{suffix}" for suffix in self._suffixes]

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to a finished artifact's
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


class _HashedFile:
    """A file of page-aligned arrays, hashed while it is written."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # it may be a link to a finished artifact's
        self._file = path.open("wb")
        self._digest = _Digest()
        self.size = 0

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    def add(self, array: NDArray[Any]) -> int:
        """Append an array and its padding; the array's bytes."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padding = bytes(-len(data) % ALIGN)
        for part in (data.data, padding):
            self._file.write(part)
            self._digest.update(part)
        self.size += len(data) + len(padding)
        return len(data)

    def entry(self) -> FileEntry:
        return FileEntry(self.size, self._digest.hex())


def set_aside(folder: Path) -> Path:
    """Rename a damaged artifact out of the way; who maps its files keeps them. Needs its lock."""
    trash = folder.with_name(f"{folder.name}.damaged-{os.getpid()}")
    if folder.exists():
        os.rename(folder, trash)
    return trash


def _order(program: ProgramEntry) -> tuple[str, int, int]:
    return program.family, program.tokens, program.context


def amend(folder: Path, made: dict[str, FileEntry]) -> None:
    """Enter files that were missing into a finished artifact's manifest. Needs its lock."""
    manifest = read_manifest(folder)
    missing = {name: why for name, why in manifest.missing.items() if name not in made}
    whole = msgspec.structs.replace(
        manifest,
        files=dict(sorted({**manifest.files, **made}.items())),
        missing=missing,
        completed_by=manifest.completed_by if missing else "",
    )
    partial = folder / f"{MANIFEST}.partial"
    partial.write_bytes(canonical(whole.signed()))
    os.replace(partial, folder / MANIFEST)


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    digest = _Digest()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return FileEntry(path.stat().st_size, digest.hex())


def _sync_folder(path: Path) -> None:
    """Make a rename in `path` survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Digest:
    """Streams data into the hash of FileEntry."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._open, self._size = hashlib.sha256(), 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            if self._size == PART_BYTES:
                self._parts.append(self._open.digest())
                self._open, self._size = hashlib.sha256(), 0
            chunk = view[: PART_BYTES - self._size]
            self._open.update(chunk)
            self._size += len(chunk)
            view = view[len(chunk) :]

    def hex(self) -> str:
        return join_hashes([*self._parts, self._open.digest()])
