"""Open, verify and find artifacts. A hash is checked before its file is parsed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from ranvier.artifact.manifest import ArtifactKey, FileEntry, Manifest, differing
from ranvier.core.errors import ArtifactError

__all__ = ["check_file", "describe_miss", "find", "read_manifest", "verify"]

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
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: {error}.") from error
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
    path = folder / name
    if not path.is_file():
        return f"{path}: missing"
    size = path.stat().st_size
    if size != entry.size:
        return f"{path}: {size} bytes, the manifest says {entry.size}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != entry.sha256:
        return (
            f"{path}: sha256 {digest.hexdigest()[:16]}..., the manifest says {entry.sha256[:16]}..."
        )
    return None


def verify(folder: Path) -> list[str]:
    """Hash every file; the list of faults, empty when the artifact is whole."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return [error.message]
    faults = [check_file(folder, name, entry) for name, entry in manifest.files.items()]
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    extra = sorted(present - set(manifest.files) - {MANIFEST})
    return [fault for fault in faults if fault] + [f"{folder / e}: not in manifest" for e in extra]


def find(root: Path, key: ArtifactKey) -> Path | None:
    """The finished artifact of a key under `root`, if it is there and its manifest says so."""
    folder = root / key.name
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    return folder if manifest.key == key else None


def describe_miss(root: Path, key: ArtifactKey) -> list[str]:
    """In which fields the nearest artifact under `root` differs."""
    nearest: dict[str, tuple[object, object]] | None = None
    for path in sorted(root.glob(f"*/{MANIFEST}")) if root.is_dir() else ():
        try:
            other = read_manifest(path.parent).key
        except ArtifactError:
            continue
        found = differing(key, other)
        if nearest is None or len(found) < len(nearest):
            nearest = found
    return [f"{name}: {new!r}, there {old!r}" for name, (new, old) in (nearest or {}).items()]
