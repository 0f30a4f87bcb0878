"""What lies in a folder of artifacts, and what of it may be removed.

Nothing that another process builds or has loaded is removed, and nothing that was not asked for.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ranvier.artifact.binaries import FOLDER as BINARIES
from ranvier.artifact.lock import free_to_remove
from ranvier.artifact.read import MANIFEST
from ranvier.core.errors import ArtifactError

__all__ = ["Item", "items", "removable", "remove"]

Kind = Literal["artifact", "binaries", "unfinished", "damaged"]


@dataclass(frozen=True)
class Item:
    """One folder of a root: an artifact, binaries of one that lies elsewhere, or leftovers."""

    path: Path
    kind: Kind
    size_bytes: int
    modified_s: float


def items(root: Path) -> list[Item]:
    """Everything in `root` that an artifact's writer made, by name. Raises ArtifactError."""
    if not root.is_dir():
        raise ArtifactError(f"{root}: there is no such folder.")
    found = ((path, _kind(path)) for path in sorted(root.iterdir()))
    return [_item(path, kind) for path, kind in found if kind is not None]


def removable(root: Path, names: list[str], built_before_s: float | None) -> list[Item]:
    """Leftovers of killed processes, and the artifacts that are named or were built before a time.

    Raises ArtifactError for a name that is not there.
    """
    present = items(root)
    known = {item.path.name for item in present}
    for name in names:
        if name not in known:
            raise ArtifactError(f"{root}: there is no artifact {name!r}.")
    return [
        item
        for item in present
        if item.kind not in ("artifact", "binaries")
        or item.path.name in names
        or item.modified_s < (built_before_s or 0)
    ]


def remove(item: Item) -> bool:
    """Remove a folder, unless another process builds or uses it: then False."""
    with free_to_remove(item.path) as is_free:
        if is_free:
            shutil.rmtree(item.path)
        return is_free


def _kind(path: Path) -> Kind | None:
    if path.is_symlink() or not path.is_dir():
        return None
    name, dot, state = path.name.partition(".")
    is_key = len(name) == 20 and set(name) <= set("0123456789abcdef")
    if not is_key:
        return None
    if not dot:
        if (path / MANIFEST).is_file():
            return "artifact"
        return "binaries" if (path / BINARIES).is_dir() else None
    if state == "building":
        return "unfinished"
    return "damaged" if state.startswith("damaged-") else None


def _item(path: Path, kind: Kind) -> Item:
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    used = max((file.stat().st_mtime for file in files), default=path.stat().st_mtime)
    return Item(path, kind, size, used)
