"""Open, verify and find artifacts. A hash is checked before its file is parsed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from ranvier.artifact.binaries import FOLDER as BINARIES
from ranvier.artifact.binaries import binary_faults
from ranvier.artifact.manifest import (
    PART_BYTES,
    ArtifactKey,
    FileEntry,
    Manifest,
    canonical,
    differing,
    join_hashes,
)
from ranvier.core.errors import ArtifactError

__all__ = [
    "MANIFEST",
    "check_file",
    "check_files",
    "describe_miss",
    "find",
    "read_manifest",
    "verify",
]

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 * 2**20
CHUNK = 2**22


def read_manifest(folder: Path) -> Manifest:
    """Parse a manifest. Raises ArtifactError naming file and fault."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; this is no artifact.")
    if path.stat().st_size > MANIFEST_BYTES_MAX:
        raise ArtifactError(f"{path}: larger than {MANIFEST_BYTES_MAX} bytes.")
    data = path.read_bytes()
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: {error}.") from error
    if data != canonical(manifest.signed()):
        raise ArtifactError(f"{path}: was changed: it does not hash to the digest that it holds.")
    for name in manifest.files:
        if name.startswith("/") or ".." in Path(name).parts:
            raise ArtifactError(f"{path}: file name {name!r} leaves the artifact.")
    if manifest.key.name != folder.name.removesuffix(".building"):
        raise ArtifactError(
            f"{path}: its key hashes to {manifest.key.name}, not the folder's name."
        )
    return manifest


def check_file(folder: Path, name: str, entry: FileEntry) -> str | None:
    """What is wrong with one file, or None."""
    return check_files(folder, {name: entry}).get(name)


def check_files(folder: Path, entries: dict[str, FileEntry]) -> dict[str, str]:
    """What is wrong with each file that is not whole; hashed by one thread per core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        jobs = {name: _hash_job(folder / name, entry, pool) for name, entry in entries.items()}
        found = {name: _fault(folder / name, entries[name], job) for name, job in jobs.items()}
    return {name: fault for name, fault in found.items() if fault}


def verify(folder: Path) -> list[str]:
    """Hash every file; the list of faults, empty when the artifact is whole."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return [error.message]
    faults = check_files(folder, manifest.files)
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    present = {str(path) for path in files if path.parts[0] != BINARIES}
    extra = sorted(present - set(manifest.files) - {MANIFEST})
    strange = (f"{folder / name}: not in manifest" for name in extra)
    return [*faults.values(), *binary_faults(folder), *strange]


def find(root: Path, key: ArtifactKey) -> Path | None:
    """The finished artifact of a key under `root`, if it is there and its manifest says so."""
    folder = root / key.name
    try:
        return folder if read_manifest(folder).key == key else None
    except ArtifactError:
        return None


def describe_miss(roots: Sequence[Path], key: ArtifactKey) -> list[str]:
    """Why no artifact of a key is usable: its damage, or where the nearest differs."""
    nearest: dict[str, tuple[object, object]] | None = None
    damage = []
    for path in [p for root in roots for p in sorted(root.glob(f"*/{MANIFEST}"))]:
        try:
            other = read_manifest(path.parent).key
        except ArtifactError as error:
            if path.parent.name == key.name:
                damage.append(error.message)
            continue
        found = differing(key, other)
        if nearest is None or len(found) < len(nearest):
            nearest = found
    fields = [f"{name}: {new!r}, there {old!r}" for name, (new, old) in (nearest or {}).items()]
    return damage or fields


def _hash_job(path: Path, entry: FileEntry, pool: ThreadPoolExecutor) -> list[Future[bytes]]:
    """Hashes of a file's parts, under way; none where the file's size is wrong already."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return []
    starts = range(0, max(entry.size, 1), PART_BYTES)
    return [pool.submit(_part_hash, path, start) for start in starts]


def _part_hash(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), PART_BYTES
    with path.open("rb") as file:
        file.seek(start)
        while left and (chunk := file.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.digest()


def _fault(path: Path, entry: FileEntry, parts: list[Future[bytes]]) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if not parts:
        return f"{path}: {path.stat().st_size} bytes, the manifest says {entry.size}"
    found = join_hashes([part.result() for part in parts])
    if found == entry.sha256:
        return None
    return f"{path}: sha256 {found[:16]}..., the manifest says {entry.sha256[:16]}..."
