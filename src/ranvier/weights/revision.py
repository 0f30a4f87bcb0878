"""Fingerprint of a model's files by their content, remembered between runs.

An artifact may travel to another machine with its model: times and paths are no part of the
fingerprint. Hashing a large model takes seconds, so each file's hash is kept in a memo beside its
size, times and inode. The memo holds the hashes of the files that were asked for last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["content_revision"]

CHUNK = 2**22
NOTES_MAX = 1024
"""Remembered hashes, some 4 KB of disk each; one more removes the one that was unused longest."""


def content_revision(files: Iterable[Path], memo: Path | None = None) -> str:
    """Hash of the names and contents of `files`; `memo` is a folder for remembered hashes."""
    paths = sorted(files, key=lambda path: path.name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        hashes = list(pool.map(lambda path: _file_hash(path, memo), paths))
    lines = (f"{path.name}:{found}\n" for path, found in zip(paths, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_hash(path: Path, memo: Path | None) -> str:
    stat = path.stat()
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    note = memo / f"{name}.json" if memo else None
    if note is not None and (found := _remembered(note, identity)) is not None:
        return found
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if note is not None:
        _remember(note, identity, digest.hexdigest())
    return digest.hexdigest()


def _remembered(note: Path, identity: list[int]) -> str | None:
    try:
        known = json.loads(note.read_text())
        found = str(known["sha256"]) if known["file"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):  # a cache that is read-only
        os.utime(note)
    return found


def _remember(note: Path, identity: list[int], found: str) -> None:
    """Write through a file of this process's own: readers see all or nothing."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"file": identity, "sha256": found}))
        temporary.replace(note)
        _forget(note.parent)


def _forget(memo: Path) -> None:
    """Remove the notes beyond the limit, those used last long ago first."""
    notes = list(memo.iterdir())
    if len(notes) <= NOTES_MAX:
        return
    used = sorted((path.stat().st_mtime_ns, path) for path in notes)
    for _, path in used[: len(notes) - NOTES_MAX]:
        path.unlink(missing_ok=True)
