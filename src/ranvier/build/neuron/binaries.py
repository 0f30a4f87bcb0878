"""Compile an artifact's StableHLO where it runs, by the device's own compiler: nothing is traced.

Parallel within the host's memory, locked between processes, resumable by program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from jaxlib import version as jaxlib_version
from tqdm import tqdm

from ranvier.artifact.binaries import BinaryStore
from ranvier.artifact.lock import locked
from ranvier.artifact.manifest import Manifest
from ranvier.artifact.read import check_files
from ranvier.build.build import machine_fingerprint
from ranvier.core.errors import DamagedArtifact, TargetError
from ranvier.runtime.compat import LoadedProgram, compile_stablehlo
from ranvier.runtime.mesh import make_mesh
from ranvier.targets.neuron.driver import worker_count
from ranvier.targets.neuron.errors import explain
from ranvier.targets.table import find_target

__all__ = ["OwnBinaries"]

REASON_CHARS = 400
Notice = Callable[[str], None]


class OwnBinaries:
    """The binaries of an artifact's programs for this process's device."""

    def __init__(self, folder: Path, manifest: Manifest, homes: list[Path], flags: str) -> None:
        """`homes`: roots that may hold them; the first is written to, the others only read.

        `flags`: the compiler flags in force. Raises TargetError where the device is not here.
        """
        self._folder, self._manifest = folder, manifest
        self._target = find_target(manifest.key.target)
        self._mesh = make_mesh(self._target, manifest.key.ranks)
        # All that a binary depends on beside its StableHLO.
        machine = machine_fingerprint(self._target)
        fingerprint = f"{machine} jaxlib {jaxlib_version.__version__} {flags}"
        stores = {home: BinaryStore(home, manifest, fingerprint) for home in homes}
        whole = (home for home, store in stores.items() if not store.missing())
        self._home = next(whole, homes[0])
        self.store = stores[self._home]

    def make(self, notice: Notice) -> dict[str, LoadedProgram]:
        """Compile what is missing; returns the programs that can't be saved, loaded.

        Raises DamagedArtifact for changed StableHLO, TargetError naming each failed program.
        """
        if not self.store.missing():
            return {}
        with locked(self._home, self._manifest.key, notice):
            names = self.store.missing()  # another process may have made them meanwhile
            sources = [f"programs/{name}.stablehlo" for name in names]
            faults = check_files(self._folder, {n: self._manifest.files[n] for n in sources})
            if faults:
                raise DamagedArtifact("; ".join(faults.values()), list(faults))
            return self._compile(names, notice) if names else {}

    def forget(self, files: list[str], notice: Notice) -> bool:
        """Strike the binaries `files` that the runtime refused; False where others are damaged."""
        names = {f"programs/{p.name}.bin": p.name for p in self._manifest.programs}
        if not names.keys() >= set(files):
            return False
        with locked(self._home, self._manifest.key, notice):
            for file in files:
                self.store.forget(names[file])
        return True

    def _compile(self, names: list[str], notice: Notice) -> dict[str, LoadedProgram]:
        workers = worker_count(len(names), int(self._manifest.model["layers"]))
        notice(
            f"compiling {len(names)} programs for this {self._target.name} from their StableHLO, "
            f"{workers} at once, kept in {self.store.folder}"
        )
        failures, unsaved, reason = [], {}, ""
        for name, program, failure in self._compiled(names, workers, notice):
            if program is None:
                failures.append(f"{name}: {failure}")
                continue
            try:
                self.store.add(name, program.serialize())
            except (RuntimeError, ValueError) as error:  # what PJRT raises
                unsaved[name], reason = program, str(error)[:REASON_CHARS]
        if failures:
            raise TargetError(
                f"{len(failures)} of {len(names)} programs did not compile: {'; '.join(failures)}",
                hint="Those that did are kept: the same command goes on from there. The artifact "
                f"was lowered by {self._manifest.model.get('lowered_by')}.",
            )
        if unsaved:
            notice(
                f"the device's plugin can't save programs: {len(unsaved)} are for this process "
                f"alone, and are compiled again at each start ({reason})"
            )
        return unsaved

    def _compiled(
        self, names: list[str], workers: int, notice: Notice
    ) -> Iterator[tuple[str, LoadedProgram | None, str]]:
        """(name, program, why there is none) as they end; progress is told."""
        with ThreadPoolExecutor(workers) as pool:
            running = {pool.submit(self._one, name): name for name in names}
            bar = tqdm(as_completed(running), "compiling programs", len(names), disable=None)
            for done in bar:
                program, failure = done.result()
                if bar.disable and program is not None:  # no terminal: a line a program
                    notice(f"compiled {running[done]}")
                yield running[done], program, failure

    def _one(self, name: str) -> tuple[LoadedProgram | None, str]:
        text = (self._folder / f"programs/{name}.stablehlo").read_bytes()
        try:
            return compile_stablehlo(text, self._mesh.devices), ""
        except (RuntimeError, ValueError) as error:
            known = explain(str(error))
            return None, " ".join(known) if known else str(error)[:REASON_CHARS]
