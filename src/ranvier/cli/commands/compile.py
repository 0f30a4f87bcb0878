"""`ranvier compile MODEL`: build the artifact and stop; --dry-run tells what would be built.

For a Neuron target on any machine: programs are lowered, linted and fitted into memory, and
compiled where neuronx-cc is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ranvier.cli.options.flags import add_engine_arguments, engine_options
from ranvier.cli.options.settings import Options, say
from ranvier.core.errors import TargetError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the plan; build nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--instance", help="Neuron: the machine it has to fit: trn2.48xlarge")
    parser.add_argument(
        "--finish", type=Path, metavar="DIR", help="make what an artifact for Neuron lacks"
    )
    add_engine_arguments(parser)
    # In place of the engine's, which knows one process.
    parser.add_argument("--nnodes", type=int, default=1, help="Neuron: how many of them [1]")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Print the artifact's folder, or the plan, or the report of a Neuron build."""
    if given.finish is not None:
        _finish(given.finish)
        return None
    options = engine_options(given)
    from ranvier.cli.cross import compile_options
    from ranvier.cli.sizes import choose_target

    is_neuron = choose_target(options).is_neuron
    if given.dry_run and not is_neuron:
        found = _plan(options)
        print(json.dumps(found, indent=1) if given.json else _text(found))
        return None
    done = compile_options(options, given.instance, nnodes=given.nnodes, is_dry=given.dry_run)
    if not is_neuron:
        seconds = round(time.perf_counter() - start_s, 2)
        report = {"artifact": str(done.path), "seconds": seconds}
        print(json.dumps(report) if given.json else done.path)
        return None
    print(json.dumps(done.report, indent=1) if given.json else _neuron_text(done.report))
    is_good = done.report["fits"] and not done.report["problem"]
    is_legal = not any(program["violations"] for program in done.report["programs"])
    return None if is_good and is_legal else TargetError.exit_code


def _finish(folder: Path) -> None:
    from ranvier.build.neuron.cross import finish_artifact
    from ranvier.cli.options.settings import binary_homes
    from ranvier.cli.wire import binary_flags, set_flags

    set_flags()
    finish_artifact(folder, binary_homes(folder), binary_flags(), say)
    print(folder)


def _neuron_text(report: dict[str, Any]) -> str:
    memory = report["memory"]
    lines = [
        f"target     {report['target']} on {report['nnodes']} x {report['instance']}, "
        f"tensor parallel {report['tensor_parallel_size']}, "
        f"{report['pipeline_parallel_size']} stages",
        f"memory     {memory['total_bytes'] / 2**30:.2f} GiB a logical core, of "
        f"{memory['limit_bytes'] / 2**30:.2f}" + ("" if report["fits"] else ": does not fit"),
        *(f"           {problem}" for problem in memory["problems"]),
        f"programs   {len(report['programs'])}",
    ]
    for program in report["programs"]:
        lines += [f"  {program['name']}: {violation}" for violation in program["violations"]]
    if report["problem"]:
        lines.append(f"problem    {report['problem']}")
    if report["artifact"]:
        lines.append(f"artifact   {report['artifact']}")
    if report["missing"]:
        lines.append(f"missing    {len(report['missing'])} files, the first: "
                     f"{next(iter(report['missing'].items()))}")  # fmt: skip
        lines.append(f"complete   {report['complete']}")
    return "\n".join(lines)


def _plan(options: Options) -> dict[str, Any]:
    """What would be built, where, its memory, and an estimate of the time."""
    from ranvier.artifact.read import find
    from ranvier.build.estimate import build_seconds
    from ranvier.build.pack import check_tensors
    from ranvier.build.programs import programs
    from ranvier.cli.options.settings import artifact_roots
    from ranvier.cli.wire import key_of, open_model, plan

    checkpoint = open_model(options)
    planned = plan(options, checkpoint)
    check_tensors(checkpoint, planned.spec)
    key = key_of(checkpoint, planned)
    roots = artifact_roots(options, checkpoint.path)
    names = [program.name for program in programs(planned.spec, planned.sizes)]
    return {
        "artifact": str(roots[0] / key.name),
        "is_built": any(find(root, key) is not None for root in roots),
        "target": key.target,
        "dtype": key.dtype,
        "max_model_len": key.max_model_len,
        "max_num_seqs": key.max_num_seqs,
        "buckets": dataclasses.asdict(planned.sizes.buckets),
        "programs": names,
        "memory_bytes": {**dict(planned.need.rows()), "total": planned.need.total_bytes},
        "available_bytes": planned.memory.available_bytes,
        "build_seconds_estimate": build_seconds(len(names), planned.need.weights_bytes),
    }


def _text(plan: dict[str, Any]) -> str:
    sizes = "\n".join(
        f"  {size / 1e6:>10.0f} MB  {part}" for part, size in plan["memory_bytes"].items()
    )
    state = "built already" if plan["is_built"] else f"about {plan['build_seconds_estimate']:.0f} s"
    return (
        f"artifact   {plan['artifact']}\n"
        f"target     {plan['target']}, {plan['dtype']}\n"
        f"limits     {plan['max_num_seqs']} sequences of {plan['max_model_len']} tokens\n"
        f"programs   {', '.join(plan['programs'])}\n"
        f"memory     {plan['available_bytes'] / 1e6:.0f} MB are available\n{sizes}\n"
        f"build      {state}"
    )
