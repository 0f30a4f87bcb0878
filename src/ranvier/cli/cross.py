"""Compile for a target that need not be here: the report, the artifact, and Python's one call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.cli.options.settings import Options, artifact_roots, parse_options, say
from ranvier.core.errors import ConfigError, TargetError

__all__ = ["Compiled", "compile", "cross_compile"]


@dataclass(frozen=True)
class Compiled:
    """What `ranvier.compile` returns; `path` is None where nothing was written."""

    path: Path | None
    report: dict[str, Any]


def compile(
    model: str,
    *,
    target: str | None = None,
    instance: str | None = None,
    nnodes: int = 1,
    **options: Any,
) -> Compiled:
    """Compile a model for a target with the options of LLM. Raises RanvierError.

    For Neuron `instance` names the machine whose memory it has to fit, for example trn2.48xlarge,
    `nnodes` how many of them run one model together.
    """
    parsed = parse_options({"model": model, "target": target, **options})
    return compile_options(parsed, instance, nnodes=nnodes, is_dry=False)


def compile_options(
    options: Options, instance: str | None, *, nnodes: int = 1, is_dry: bool
) -> Compiled:
    """Compile, or with `is_dry` only lower, lint and fit."""
    from ranvier.cli.sizes import choose_target
    from ranvier.cli.wire import ensure_artifact

    target = choose_target(options)
    if target.is_neuron:
        return cross_compile(options, instance, nnodes=nnodes, is_dry=is_dry)
    if instance is not None:
        raise ConfigError(f"--instance is for Neuron; the target is {target.name}.")
    start = time.perf_counter()
    folder = ensure_artifact(options)
    seconds = round(time.perf_counter() - start, 2)
    return Compiled(folder, {"artifact": str(folder), "target": target.name, "seconds": seconds})


def cross_compile(options: Options, instance: str | None, *, nnodes: int, is_dry: bool) -> Compiled:
    """Lower for Neuron, lint, fit, and write unless `is_dry` or it does not fit."""
    from ranvier.build.neuron.cross import build_neuron, lower_all
    from ranvier.cli.wire import key_of, open_model, plan

    start = time.perf_counter()
    checkpoint = open_model(options)
    planned = plan(options, checkpoint)
    memory = _memory(planned, instance, nnodes, Path(options.model).name)
    lowered = list(lower_all(planned.spec, planned.sizes, planned.target, say))
    key = key_of(checkpoint, planned)
    folder, problem = None, ""
    if not is_dry and memory.fits:
        root = artifact_roots(options, checkpoint.path)[0]
        try:
            folder = build_neuron(
                root, key, planned.source(checkpoint), planned.sizes, lowered, say
            )
        except TargetError as error:
            folder, problem = root / key.name, error.message
    report = {
        "target": planned.target.name,
        "instance": instance,
        "nnodes": nnodes,
        "tensor_parallel_size": planned.sizes.tensor_parallel,
        "pipeline_parallel_size": planned.sizes.pipeline_parallel,
        "logical_nc_config": planned.sizes.logical_cores,
        "fits": memory.fits,
        "memory": {
            "limit_bytes": memory.limit_bytes,
            "total_bytes": memory.total_bytes,
            "rows": [{"kind": r.kind, "bytes": r.bytes, "formula": r.formula} for r in memory.rows],
            "problems": list(memory.problems),
        },
        "programs": [_program(low, folder) for low in lowered],
        **_missing(folder),
        "problem": problem,
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Compiled(folder, report)


def _memory(planned: Any, instance: str | None, nnodes: int, name: str) -> Any:
    """The memory of one logical core. Raises ConfigError for an instance of another chip."""
    from ranvier.build.numbers import model_numbers
    from ranvier.targets.axes import Axes
    from ranvier.targets.neuron.instances import find_instance
    from ranvier.targets.neuron.memory import fit
    from ranvier.targets.numbers import MemorySizes

    if instance is None:
        raise ConfigError(
            f"--target {planned.target.name} needs the instance whose memory it has to fit.",
            hint="For example --instance trn2.48xlarge; `ranvier plan MODEL` compares them all.",
        )
    machine, sizes = find_instance(instance), planned.sizes
    if machine.chip.target != planned.target.name:
        raise ConfigError(
            f"{instance} has {machine.chip.name} chips; the target is {planned.target.name}.",
            hint=f"Give --target {machine.chip.target}.",
        )
    needs = MemorySizes(
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.buckets.prefill_tokens[-1],
        block_tokens=sizes.block_tokens,
        block_count=sizes.block_count,
        dtype=sizes.dtype,
        kv_dtype=sizes.dtype if sizes.kv_cache_dtype == "auto" else "fp8",
        program_count=len(sizes.buckets.prefill_programs) + len(sizes.buckets.decode_programs),
        lora_slots=sizes.adapter_slots,
        lora_rank=sizes.adapter_rank_max,
        draft=model_numbers(sizes.draft.spec, "draft") if sizes.draft else None,
    )
    return fit(
        model_numbers(planned.spec, name), needs, machine, sizes.tensor_parallel,
        logical_core_config=sizes.logical_cores,
        axes=Axes(stages=sizes.pipeline_parallel, hosts=nnodes),
    )  # fmt: skip


def _program(low: Any, folder: Path | None) -> dict[str, Any]:
    binary = f"programs/{low.shape.name}.neff"
    is_made = folder is not None and (folder / binary).is_file()
    return {
        "name": low.shape.name,
        "violations": [str(violation) for violation in low.violations],
        "bytes": len(low.hlo),
        "missing": [] if is_made else [binary],
    }


def _missing(folder: Path | None) -> dict[str, Any]:
    """What the artifact lacks, and the command that makes it."""
    from ranvier.artifact.read import read_manifest
    from ranvier.build.neuron.cross import FINISH

    if folder is None:
        return {"artifact": None, "missing": {}, "complete": ""}
    missing = read_manifest(folder).missing
    complete = FINISH.format(folder=folder) if missing else ""
    return {"artifact": str(folder), "missing": missing, "complete": complete}
