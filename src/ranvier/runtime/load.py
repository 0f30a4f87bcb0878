"""Load an artifact: verify, programs, weights, state, warm; every phase timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from ranvier.artifact.binaries import BinaryStore
from ranvier.artifact.lock import hold
from ranvier.artifact.manifest import ArrayEntry, Manifest, weights_file
from ranvier.artifact.read import check_files, read_manifest
from ranvier.core.buckets import BucketLimits, prove_coverage
from ranvier.core.errors import ArtifactError, ConfigError, DamagedArtifact
from ranvier.core.program import encoder_shapes, place_shapes, program_shapes
from ranvier.core.step import RunnerInfo
from ranvier.native import library
from ranvier.runtime.adapters import AdapterSlots
from ranvier.runtime.compat import LoadedProgram, deserialize
from ranvier.runtime.encoder import PREFIX, PictureEncoder
from ranvier.runtime.mesh import RankMesh, make_mesh
from ranvier.runtime.runner import DeviceRunner
from ranvier.targets.table import find_target

__all__ = ["Phases", "check_missing", "load_runner"]

NEFF = ".neff"
FINISH = "`ranvier compile --finish {folder}`"

Phases = list[tuple[str, float]]


def load_runner(
    folder: Path,
    phases: Phases,
    binaries: BinaryStore | None = None,
    unsaved: Mapping[str, LoadedProgram] | None = None,
) -> DeviceRunner:
    """A warm runner; appends (phase, seconds) to `phases`. Raises ArtifactError.

    `binaries`: where those lie that the artifact came without; `unsaved`: programs loaded already.
    """
    in_use = hold(folder)
    manifest = read_manifest(folder)
    with _timed(phases, "verify artifact"):
        faults = check_files(folder, manifest.files)
        if faults:
            raise DamagedArtifact(
                "; ".join(faults.values()),
                list(faults),
                hint=f"Remove {folder} and build it again.",
            )
    check_missing(folder, manifest)
    info, target = _info(manifest), find_target(manifest.key.target)
    _prove(folder, manifest)
    source = _Binaries(folder, manifest, binaries, unsaved or {})
    source.check()
    mesh = make_mesh(target, manifest.key.ranks)
    if manifest.model["kernels"] == "cpu" and not library.register():
        raise ArtifactError(
            f"{folder}: its programs call the CPU kernels, which are not built here.",
            hint="Install a C++ compiler and reinstall, or remove the artifact.",
        )
    with _timed(phases, "load programs"):
        programs = {shape: source.load(shape.name, mesh) for shape in info.programs}
        encoders = {s: source.load(s.name, mesh) for s in encoder_shapes(info.vision)}
    with _timed(phases, "map weights"):
        weights, seeing = _weights(folder, manifest, mesh)
    with _timed(phases, "allocate cache"):
        state = _state(manifest, mesh)
        slots = None
        for place in place_shapes(info.adapter_slots):
            stacks = manifest.model["adapter_stacks"]
            slots = AdapterSlots(stacks, source.load(place.name, mesh), mesh)
    encoder = None
    if info.vision is not None:
        encoder = PictureEncoder(info.vision, manifest.model["encoder"], encoders, seeing, mesh)
    runner = DeviceRunner(info, programs, weights, state, in_use.close, encoder, slots)
    with _timed(phases, "warm programs"):
        runner.warm()
    return runner


@contextmanager
def _timed(phases: Phases, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    phases.append((name, time.perf_counter() - start))


def _info(manifest: Manifest) -> RunnerInfo:
    key, model = manifest.key, manifest.model
    return RunnerInfo(
        buckets=key.buckets,
        rows_max=key.max_num_seqs,
        block_tokens=key.block_tokens,
        block_count=key.block_count,
        model_len_max=key.max_model_len,
        vocab_size=int(model["vocab_size"]),
        logprobs_max=int(model["logprobs_max"]),
        edits_max=int(model["edits_max"]),
        kv_layout=key.kv_layout,
        adapter_slots=key.adapter_slots,
        adapter_rank_max=key.adapter_rank_max,
        vision=key.vision,
    )


def _prove(folder: Path, manifest: Manifest) -> None:
    """Every step within the limits has a program, or ArtifactError."""
    key = manifest.key
    sizes = key.buckets.tokens or key.buckets.prefill_tokens or (1,)
    limits = BucketLimits(
        max_model_len=key.max_model_len,
        max_num_seqs=key.max_num_seqs,
        max_num_batched_tokens=sizes[-1],
        block_tokens=key.block_tokens,
    )
    try:
        prove_coverage(key.buckets, limits)
    except ConfigError as error:
        raise ArtifactError(f"{folder}: {error.message}", hint="Build it again.") from error


def check_missing(folder: Path, manifest: Manifest) -> None:
    """Refuse an artifact that lacks what running takes; nothing here reads a NEFF."""
    lacking = {k: why for k, why in manifest.missing.items() if not k.endswith(NEFF)}
    if lacking:
        raise ArtifactError(
            f"{folder} can't run yet: {len(lacking)} files are missing, "
            f"{next(iter(lacking.items()))} among them.",
            hint="Compile it again with what the reason names.",
        )


class _Binaries:
    """Where each program's executable comes from: the artifact, this device's own, or memory."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        own: BinaryStore | None,
        unsaved: Mapping[str, LoadedProgram],
    ) -> None:
        self._folder, self._manifest, self._own, self._unsaved = folder, manifest, own, unsaved

    def check(self) -> None:
        """Raise ArtifactError unless every program has one."""
        key = self._manifest.key
        shapes = program_shapes(key.buckets, key.max_num_seqs) + encoder_shapes(key.vision)
        shapes += place_shapes(key.adapter_slots)
        names = [shape.name for shape in shapes]
        absent = [name for name in names if not self._has(name)]
        if absent:
            raise ArtifactError(
                f"{self._folder}: has no binary of {', '.join(absent)} for this device.",
                hint=f"{FINISH.format(folder=self._folder)}, where the device is, makes them.",
            )

    def load(self, name: str, mesh: RankMesh) -> LoadedProgram:
        """Raises DamagedArtifact."""
        if name in self._unsaved:
            return self._unsaved[name]
        path = self._folder / "programs" / f"{name}.bin"
        data = path.read_bytes() if self._own is None else self._own.read(name) or b""
        try:
            return deserialize(data, mesh.devices)
        except (RuntimeError, ValueError) as error:
            raise DamagedArtifact(
                f"{path if self._own is None else self._own.folder / path.name}: this runtime "
                f"refuses it: {error}",
                [f"programs/{name}.bin"],
                hint=f"Remove {self._folder} and build it again on this machine.",
            ) from error

    def _has(self, name: str) -> bool:
        if self._own is None:
            return f"programs/{name}.bin" in self._manifest.files
        return name in self._unsaved or self._own.read(name) is not None


def _dtype(name: str) -> np.dtype[np.generic]:
    return np.dtype(getattr(ml_dtypes, name, name))


def _weights(
    folder: Path, manifest: Manifest, mesh: RankMesh
) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """The weights of steps by name, and those of encode programs in their order.

    Each rank's part is read from its own file, all files at once.
    """
    names = sorted(manifest.arrays)

    def load(rank: int) -> list[jax.Array]:
        path, device = folder / weights_file(rank, manifest.key.ranks), mesh.devices[rank]
        return [_array(path, manifest.arrays[name], device) for name in names]

    with ThreadPoolExecutor(len(mesh.local_ranks)) as pool:
        ranks = list(pool.map(load, mesh.local_ranks))
    arrays = {
        name: mesh.join(parts) for name, parts in zip(names, zip(*ranks, strict=True), strict=True)
    }
    return (
        {name: array for name, array in arrays.items() if not name.startswith(PREFIX)},
        [array for name, array in arrays.items() if name.startswith(PREFIX)],
    )


def _array(path: Path, entry: ArrayEntry, device: jax.Device) -> jax.Array:
    """A view of the mapped file: page-aligned, so the device takes it without a copy."""
    raw = np.memmap(path, np.uint8, "r", offset=entry.offset, shape=(entry.size,))
    array: jax.Array = jax.device_put(raw.view(_dtype(entry.dtype)).reshape(entry.shape), device)
    return array


def _state(manifest: Manifest, mesh: RankMesh) -> dict[str, jax.Array]:
    state: dict[str, tuple[list[int], str]] = manifest.model["state"]
    return {name: mesh.zeros(shape, _dtype(kind)) for name, (shape, kind) in state.items()}
