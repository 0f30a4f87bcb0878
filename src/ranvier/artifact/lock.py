"""Locks between processes: one builder per key, many readers per artifact, no removal under them.

All are flocks, so they end with their process, however it ends.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ranvier.artifact.manifest import ArtifactKey
from ranvier.artifact.read import MANIFEST
from ranvier.core.errors import ArtifactError

__all__ = ["free_to_remove", "hold", "locked"]


@contextmanager
def locked(root: Path, key: ArtifactKey, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold the key's lock between processes; says so when another holds it.

    Raises ArtifactError where nothing can be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock_path(root, key.name).open("a+")
    except OSError as error:
        raise ArtifactError(
            f"{root}: nothing can be written there: {error.strerror}.",
            hint="Name another folder with --artifacts, or build where it is writable.",
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"another process builds {key.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(folder: Path) -> IO[bytes]:
    """An open file that marks the artifact as in use until it is closed; needs no write access."""
    file = (folder / MANIFEST).open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


@contextmanager
def free_to_remove(folder: Path) -> Iterator[bool]:
    """Whether no other process builds or uses the folder; kept so until the context ends."""
    name = folder.name.removesuffix(".building")
    with _lock_path(folder.parent, name).open("a+") as builder:
        if not _taken(builder):
            yield False
            return
        manifest = folder / MANIFEST
        if not manifest.is_file():
            yield True
            return
        with manifest.open("rb") as readers:
            yield _taken(readers)


def _taken(file: IO[bytes] | IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_path(root: Path, name: str) -> Path:
    return root / f"{name}.lock"
