"""Programs for Neuron on any machine: lowered per core, linted, written, compiled where possible.

What cannot be made here is listed in the manifest as missing, with the command that makes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlib import version as jaxlib_version

from ranvier.artifact.lock import locked
from ranvier.artifact.manifest import ArtifactKey, ProgramEntry, weights_file
from ranvier.artifact.read import find, read_manifest
from ranvier.artifact.write import ArtifactWriter, amend, file_entry
from ranvier.build.build import add_text, has_weights, pack_all
from ranvier.build.drafting import Source
from ranvier.build.neuron.binaries import OwnBinaries
from ranvier.build.neuron.lint import lint
from ranvier.build.programs import Sizes, model_numbers, programs
from ranvier.core.errors import ArtifactError, TargetError
from ranvier.core.program import ProgramShape
from ranvier.models.spec import DecoderSpec
from ranvier.runtime.compat import hlo_proto
from ranvier.runtime.device import is_present
from ranvier.targets.neuron import driver
from ranvier.targets.neuron.legality import Violation
from ranvier.targets.table import Target, find_target

__all__ = ["FINISH", "Lowered", "build_neuron", "finish_artifact", "lower_all"]

FINISH = "ranvier compile --finish {folder}"
SUFFIXES = ("stablehlo", "hlo.pb")
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Lowered:
    """One core's program: both forms of it, and what the lint found."""

    shape: ProgramShape
    stablehlo: bytes
    hlo: bytes
    violations: tuple[Violation, ...]


def lower_all(spec: DecoderSpec, sizes: Sizes, target: Target, notice: Notice) -> Iterator[Lowered]:
    """Lower and lint every program for platform neuron; no device and no compiler is needed."""
    for program in programs(spec, sizes):
        start = time.perf_counter()
        module = program.module(target.platform)
        found = tuple(lint(module, target.compiler_target))
        lowered = Lowered(program.shape, str(module).encode(), hlo_proto(module), found)
        notice(f"lowered {program.name} in {time.perf_counter() - start:.1f} s")
        yield lowered


def build_neuron(
    root: Path,
    key: ArtifactKey,
    source: Source,
    sizes: Sizes,
    lowered: list[Lowered],
    notice: Notice,
) -> Path:
    """Write the artifact of lowered programs, then compile what this machine can.

    Raises TargetError when a program breaks a rule, or names the programs that did not compile.
    """
    broken = [f"{low.shape.name}: {v}" for low in lowered for v in low.violations]
    if broken:
        raise TargetError(f"The programs are not legal for {key.target}: {'; '.join(broken[:3])}")
    folder = find(root, key)
    if folder is None:
        with locked(root, key, notice):
            folder = find(root, key) or _write(
                ArtifactWriter(root, key, SUFFIXES), source, sizes, lowered
            )
    compiler = driver.find_compiler()
    if compiler is not None:
        _make_neffs(folder.resolve(), compiler, notice)
    return folder


def _write(writer: ArtifactWriter, source: Source, sizes: Sizes, lowered: list[Lowered]) -> Path:
    checkpoint, spec = source.checkpoint, source.spec
    missing = {}
    for low in lowered:
        writer.add_program(ProgramEntry.of(low.shape), low.stablehlo, low.hlo)
        missing[_neff(low.shape.name)] = "neuronx-cc makes it of the HLO; not needed to run"
    missing.update(_add_model(writer, source, sizes))
    writer.add_file("config.json", json.dumps(checkpoint.config, indent=1).encode())
    made_by = {"lowered_by": f"jaxlib {jaxlib_version.__version__}"}
    return writer.finish({**model_numbers(spec, sizes), **made_by}, missing)


def _add_model(writer: ArtifactWriter, source: Source, sizes: Sizes) -> dict[str, str]:
    """Weights and tokenizer where they are at hand; what is missing, with the reason."""
    checkpoint = source.checkpoint
    if not has_weights(checkpoint):
        ranks = sizes.parallel.ranks
        why = "the model is a config alone; compile with its weights"
        return {weights_file(rank, ranks): why for rank in range(ranks)}
    add_text(writer, checkpoint, has_pictures=sizes.vision is not None)
    writer.add_weights(pack_all(source, sizes))
    return {}


def finish_artifact(folder: Path, homes: list[Path], flags: str, notice: Notice) -> None:
    """Make what this machine can: the device's binaries, into `homes`, and the missing NEFFs.

    Each that is done stays done. `flags`: the compiler flags in force. Raises ArtifactError for
    what is no Neuron artifact, TargetError naming each failed program.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
    target, compiler = find_target(manifest.key.target), driver.find_compiler()
    if not target.is_neuron:
        raise ArtifactError(f"{folder} is for {target.name}: nothing of it is finished elsewhere.")
    has_device = is_present(target)
    if compiler is None and not has_device:
        raise TargetError(
            f"Here is no {target.name} and no neuronx-cc: nothing that {folder} lacks can be made.",
            hint="Run this on the instance, which compiles what it runs; or where neuronx-cc is "
            f"on the PATH, for the {len(_jobs(folder))} NEFFs.",
        )
    if has_device:
        OwnBinaries(folder, manifest, homes, flags).make(notice)
    if compiler is not None:
        _make_neffs(folder, compiler, notice)


def _make_neffs(folder: Path, compiler: str, notice: Notice) -> None:
    """Compile the missing NEFFs with neuronx-cc. Raises TargetError naming each failed program."""
    key = read_manifest(folder).key
    target = find_target(key.target)
    with locked(folder.parent, key, notice):
        jobs = _jobs(folder)
        layers = int(read_manifest(folder).model["layers"])
        workers = driver.worker_count(len(jobs), layers)
        notice(f"{driver.compiler_version(compiler)}: {len(jobs)} programs, {workers} at once")

        def words(job: driver.Job) -> list[str]:
            return driver.command(compiler, job, target.compiler_target, key.logical_cores)

        def done(job: driver.Job) -> None:
            amend(folder, {_neff(job.name): file_entry(job.neff)})
            notice(f"compiled {job.name}")

        failures = driver.compile_all(jobs, words, workers, done)
    if failures:
        told = "; ".join(f"{f.name}: {f.reason}" for f in failures)
        raise TargetError(
            f"{len(failures)} of {len(jobs)} programs did not compile: {told}",
            hint=f"Those that did are kept. Again: {FINISH.format(folder=folder)}",
        )


def _jobs(folder: Path) -> list[driver.Job]:
    manifest = read_manifest(folder)
    return [
        driver.Job(p.name, folder / f"programs/{p.name}.hlo.pb", folder / _neff(p.name), p.family)
        for p in manifest.programs
        if _neff(p.name) in manifest.missing
    ]


def _neff(name: str) -> str:
    return f"programs/{name}.neff"
