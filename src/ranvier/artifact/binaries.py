"""Binaries that a device's own compiler made of an artifact's StableHLO.

They are no part of the artifact, which is the same on every machine: each folder of them belongs to
one artifact and one fingerprint (device, compiler, runtime, flags), and its signed table says of
which StableHLO each was made. Bytes are checked against the table before anything parses them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from ranvier.artifact.manifest import Manifest, canonical

__all__ = ["FOLDER", "BinaryStore", "binary_faults", "comes_without_binaries"]

FOLDER = "binaries"
TABLE = "binaries.json"


class BinaryEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One binary: its size and sha256, and the hash of the StableHLO that it was made of."""

    size: int
    sha256: str
    source: str


class BinaryTable(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a folder of binaries holds."""

    artifact: str
    fingerprint: str
    files: dict[str, BinaryEntry] = {}
    digest: str = ""

    def signed(self) -> BinaryTable:
        """The same table with its digest filled in."""
        bare = msgspec.structs.replace(self, digest="")
        return msgspec.structs.replace(bare, digest=hashlib.sha256(canonical(bare)).hexdigest())


def comes_without_binaries(manifest: Manifest) -> bool:
    """Whether an artifact's programs are StableHLO alone, to be compiled where they run."""
    binaries = {f"programs/{program.name}.bin" for program in manifest.programs}
    return binaries.isdisjoint(manifest.files)


class BinaryStore:
    """The binaries of one artifact for one fingerprint, within `home`/<artifact>."""

    def __init__(self, home: Path, manifest: Manifest, fingerprint: str) -> None:
        self._manifest = manifest
        self._empty = BinaryTable(artifact=manifest.key.name, fingerprint=fingerprint)
        short = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
        self.folder = home / manifest.key.name / FOLDER / short

    def missing(self) -> list[str]:
        """The programs that have no whole binary of their present StableHLO."""
        return [p.name for p in self._manifest.programs if self.read(p.name) is None]

    def read(self, name: str) -> bytes | None:
        """A program's binary; None where it is absent, damaged or made of other StableHLO."""
        entry = self._table().files.get(name)
        if entry is None or entry.source != self._source(name):
            return None
        return _whole(self.folder / f"{name}.bin", entry)

    def add(self, name: str, data: bytes) -> None:
        """Write a binary and enter it. Needs the artifact's lock in this place."""
        entry = BinaryEntry(len(data), hashlib.sha256(data).hexdigest(), self._source(name))
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / f"{name}.bin", data)
        self._enter({**self._table().files, name: entry})

    def forget(self, name: str) -> None:
        """Strike a binary that the runtime refuses. Needs the artifact's lock in this place."""
        self._enter({k: v for k, v in self._table().files.items() if k != name})

    def _source(self, name: str) -> str:
        return self._manifest.files[f"programs/{name}.stablehlo"].sha256

    def _table(self) -> BinaryTable:
        found = _read_table(self.folder)
        is_ours = found is not None and found.fingerprint == self._empty.fingerprint
        return found if found is not None and is_ours else self._empty

    def _enter(self, files: dict[str, BinaryEntry]) -> None:
        table = msgspec.structs.replace(self._empty, files=dict(sorted(files.items())))
        _replace(self.folder / TABLE, canonical(table.signed()))


def binary_faults(artifact: Path) -> list[str]:
    """What is wrong with the binaries that lie in an artifact's own folder."""
    faults = []
    for folder in sorted((artifact / FOLDER).glob("*/")):
        table = _read_table(folder)
        if table is None:
            faults.append(f"{folder / TABLE}: missing or changed")
            continue
        for name, entry in table.files.items():
            if _whole(folder / f"{name}.bin", entry) is None:
                faults.append(f"{folder / name}.bin: not what {TABLE} says")
    return faults


def _read_table(folder: Path) -> BinaryTable | None:
    try:
        data = (folder / TABLE).read_bytes()
        table = msgspec.json.decode(data, type=BinaryTable)
    except (OSError, msgspec.DecodeError):
        return None
    return table if data == canonical(table.signed()) else None


def _whole(path: Path, entry: BinaryEntry) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    is_whole = len(data) == entry.size and hashlib.sha256(data).hexdigest() == entry.sha256
    return data if is_whole else None


def _replace(path: Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
