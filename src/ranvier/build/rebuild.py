"""Compile lost or refused program binaries again, from the StableHLO that lies beside them.

Nothing is traced and no checkpoint is needed; files that are whole are linked, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ranvier.artifact.lock import locked
from ranvier.artifact.read import check_files, read_manifest
from ranvier.artifact.write import ArtifactWriter
from ranvier.core.errors import ArtifactError
from ranvier.native import library
from ranvier.runtime.compat import compile_stablehlo
from ranvier.runtime.mesh import make_mesh
from ranvier.targets.table import find_target

__all__ = ["is_mendable", "rebuild_programs"]


def is_mendable(names: Collection[str]) -> bool:
    """Whether these damaged files of an artifact can be made again from the others."""
    return bool(names) and all(n.startswith("programs/") and n.endswith(".bin") for n in names)


def rebuild_programs(
    folder: Path, names: Collection[str], root: Path, notice: Callable[[str], None]
) -> Path:
    """Replace `root`'s artifact of the same key by one with the binaries `names` compiled again.

    Raises ArtifactError when anything but binaries is damaged.
    """
    manifest = read_manifest(folder)
    with locked(root, manifest.key, notice):
        if read_manifest(folder) != manifest:  # another process has mended it meanwhile
            return folder
        damaged = set(check_files(folder, manifest.files)) | set(names)
        if not is_mendable(damaged):
            raise ArtifactError(f"{folder}: {', '.join(sorted(damaged))}: can't be made again.")
        library.register()
        mesh = make_mesh(find_target(manifest.key.target), manifest.key.ranks)
        writer = ArtifactWriter(root, manifest.key)
        whole = [name for name in manifest.files if name not in damaged]
        writer.take_over(folder, manifest, whole)
        for program in manifest.programs:
            if f"programs/{program.name}.bin" in damaged:
                notice(f"compiling {program.name} again from its StableHLO")
                text = (folder / f"programs/{program.name}.stablehlo").read_bytes()
                binary = compile_stablehlo(text, mesh.devices).serialize()
                writer.add_file(f"programs/{program.name}.bin", binary)
        return writer.finish(manifest.model)
