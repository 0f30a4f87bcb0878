"""Build an artifact: the only place that traces, lowers and compiles.

Parallel over programs, locked between processes, resumable; a key that exists is reused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlib import version as jaxlib_version
from numpy.typing import NDArray
from tqdm import tqdm

import ranvier
from ranvier.artifact.lock import locked
from ranvier.artifact.manifest import ArtifactKey, ProgramEntry
from ranvier.artifact.read import describe_miss, find
from ranvier.artifact.write import ArtifactWriter
from ranvier.build.drafting import Source, pack_draft
from ranvier.build.pack import Form, constants, pack_ranks, widened
from ranvier.build.programs import Program, Sizes, model_numbers, programs
from ranvier.build.shard.cut import Shard
from ranvier.core.errors import ArtifactError, CheckpointError
from ranvier.native import library
from ranvier.runtime.compat import compile_stablehlo, serialize
from ranvier.runtime.device import describe
from ranvier.runtime.mesh import RankMesh, make_mesh
from ranvier.targets.table import Target, find_target
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.folder import ModelFolder

__all__ = [
    "add_text",
    "artifact_key",
    "build_artifact",
    "has_weights",
    "machine_fingerprint",
    "pack_all",
]

WORKERS = 2
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
SOURCES = ("nn", "models", "build", "native", "core/layout.py")
Notice = Callable[[str], None]


def artifact_key(source: Source, sizes: Sizes, target: Target, flags: str) -> ArtifactKey:
    """The key of a build; `flags` are the compiler flags in force. Raises TargetError."""
    return ArtifactKey(
        model=_config_hash(source.checkpoint),
        draft=_draft_name(source.draft, sizes),
        weights=weights_revision(source.checkpoint),
        target=target.name,
        target_fingerprint=_fingerprint(target, flags),
        sources=_source_hash(has_kernels=not target.is_neuron),
        dtype=sizes.dtype,
        quantization=sizes.quantization,
        kv_cache_dtype=sizes.kv_cache_dtype,
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        block_tokens=sizes.block_tokens,
        block_count=sizes.block_count,
        kernels=sizes.kernels,
        kv_layout=sizes.kv_layout,
        buckets=sizes.buckets,
        tensor_parallel=sizes.tensor_parallel,
        pipeline_parallel=sizes.pipeline_parallel,
        sequence_parallel=sizes.sequence_parallel,
        logical_cores=sizes.logical_cores,
        adapter_slots=sizes.adapter_slots,
        adapter_rank_max=sizes.adapter_rank_max,
        adapter_modules=sizes.adapter_modules,
        vision=sizes.vision,
    )


def _config_hash(checkpoint: Checkpoint) -> str:
    text = json.dumps(checkpoint.config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _draft_name(draft: Checkpoint | None, sizes: Sizes) -> str:
    """What tells one drafter from another: method, config, weights, how they are kept."""
    if draft is None or sizes.draft is None:
        return ""
    kept, revision = sizes.draft_quantization, weights_revision(draft)
    return f"{sizes.draft.method} {_config_hash(draft)} {revision} {kept}"


def build_artifact(
    roots: Sequence[Path],
    key: ArtifactKey,
    source: Source,
    sizes: Sizes,
    notice: Notice,
    *,
    is_required: bool = False,
) -> Path:
    """The artifact's folder in the first root, built if it is not there.

    The other roots are looked at for what differs. Raises ArtifactError when required.
    """
    root = roots[0]
    found = find(root, key)
    if found is not None:
        return found
    differences = describe_miss(roots, key)
    if is_required:
        raise ArtifactError(
            f"{', '.join(map(str, roots))}: no artifact {key.name} for these options.",
            hint="What differs, of the nearest: " + ("; ".join(differences) or "there is none"),
        )
    for line in differences:
        notice(f"artifact miss: {line}")
    with locked(root, key, notice):
        found = find(root, key)
        if found is not None:
            return found
        return _build(ArtifactWriter(root, key), source, sizes, notice)


def _build(writer: ArtifactWriter, source: Source, sizes: Sizes, notice: Notice) -> Path:
    checkpoint, spec = source.checkpoint, source.spec
    notice("packing weights")
    packed = pack_all(source, sizes)
    count = len(spec.arrays) + len(constants(Shard(spec, sizes.parallel, 0)))
    bar = tqdm(packed, desc="packing weights", total=count, disable=None)
    arrays = writer.add_weights(bar)
    if sizes.kernels == "cpu" and sizes.quantization != "none":
        for name in widened(checkpoint, spec, arrays):
            notice(
                f"{name}: packed in {sizes.dtype}, not quantised: a layer or part of it is dense, "
                "or of a form that no kernel reads"
            )
    table = programs(spec, sizes, arrays)
    missing = [p for p in table if not writer.reuse_program(ProgramEntry.of(p.shape))]
    mesh = make_mesh(find_target(writer.key.target), writer.key.ranks)
    with ThreadPoolExecutor(WORKERS) as pool:
        compile_ = functools.partial(_compile, mesh)
        done = zip(missing, pool.map(compile_, missing), strict=True)
        bar = tqdm(done, desc="compiling programs", total=len(missing), disable=None)
        for program, (text, binary) in bar:
            if bar.disable:  # no terminal: a line a program
                notice(f"compiled {program.name}")
            writer.add_program(ProgramEntry.of(program.shape), text, binary)
    writer.add_file("config.json", json.dumps(checkpoint.config, indent=1).encode())
    add_text(writer, checkpoint, has_pictures=sizes.vision is not None)
    return writer.finish(model_numbers(spec, sizes))


def add_text(writer: ArtifactWriter, checkpoint: Checkpoint, *, has_pictures: bool) -> None:
    """Write what the host reads: tokenizer, defaults, how pictures are prepared."""
    writer.add_file("text/tokenizer.json", checkpoint.tokenizer_json().encode())
    for name in IMAGE_FILES if has_pictures else ():
        fields = ModelFolder(checkpoint.path).fields(name)
        writer.add_file(f"text/{name}", json.dumps(fields).encode())
    for name in ("tokenizer_config", "generation_config"):
        writer.add_file(f"text/{name}.json", json.dumps(getattr(checkpoint, name)).encode())


def pack_all(source: Source, sizes: Sizes) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """The packed weights of every rank, and of a drafter where there is one. As `pack_ranks`."""
    parallel = sizes.parallel
    shards = [Shard(source.spec, parallel, rank) for rank in range(parallel.ranks)]
    form = Form(sizes.dtype, sizes.kernels, sizes.quantization != "none")
    yield from pack_ranks(source.checkpoint, shards, form)
    if sizes.draft is not None:
        assert source.draft is not None, "a drafter without weights"
        form = replace(form, is_quantised=sizes.draft_quantization != "none")
        yield from pack_draft(source.draft, sizes.draft, form, parallel)


def _compile(mesh: RankMesh, program: Program) -> tuple[bytes, bytes]:
    if program.parallel.ranks > 1:
        text = str(program.module(mesh.platform)).encode()
        return text, compile_stablehlo(text, mesh.devices).serialize()
    lowered = program.lower(mesh.platform)
    return str(lowered.compiler_ir("stablehlo")).encode(), serialize(lowered.compile())


def weights_revision(checkpoint: Checkpoint) -> str:
    """The revision of the weights; a name for a folder that holds a config alone."""
    return checkpoint.revision[:32] if has_weights(checkpoint) else "config alone"


def has_weights(checkpoint: Checkpoint) -> bool:
    """Whether the model's tensors are here."""
    try:
        return bool(checkpoint.tensor_names())
    except CheckpointError:
        return False


def _source_hash(*, has_kernels: bool) -> str:
    """Hash of the sources that shape programs, and of the kernel library where they call it."""
    digest, top = hashlib.sha256(), Path(ranvier.__file__).parent
    for source in SOURCES:
        base = top / source
        files = [base] if base.is_file() else sorted(base.rglob("*.py"))
        files += sorted(base.rglob("*.so")) if has_kernels else []
        for path in files:
            digest.update(str(path.relative_to(top)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _fingerprint(target: Target, flags: str) -> str:
    """What the files of an artifact depend on beside sources and sizes.

    For Neuron they are StableHLO, the same wherever it is made; its binaries have a fingerprint of
    their own (build/neuron/binaries.py).
    """
    if target.is_neuron:
        return f"--target {target.compiler_target}"
    return f"{machine_fingerprint(target)} jaxlib {jaxlib_version.__version__} {flags}"


def machine_fingerprint(target: Target) -> str:
    """What a binary of the target depends on of this machine. Raises TargetError: no device."""
    return f"{_cpu()} {library.isa()}" if target.platform == "cpu" else describe(target)


def _cpu() -> str:
    """Model and feature flags of this machine's processor, hashed."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12]
    return f"{platform.machine()} {digest}"
