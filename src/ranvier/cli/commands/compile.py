"""`ranvier compile MODEL`: build the artifact and stop; --dry-run tells what would be built."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from ranvier.cli.flags import add_engine_arguments, engine_options
from ranvier.cli.settings import Options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the plan; build nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_arguments(parser)


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Print the artifact's folder, or the plan."""
    options = engine_options(given)
    if given.dry_run:
        found = _plan(options)
        print(json.dumps(found, indent=1) if given.json else _text(found))
        return None
    from ranvier.cli.wire import ensure_artifact

    folder = ensure_artifact(options)
    seconds = round(time.perf_counter() - start_s, 2)
    print(json.dumps({"artifact": str(folder), "seconds": seconds}) if given.json else folder)
    return None


def _plan(options: Options) -> dict[str, Any]:
    """What would be built, where, its memory, and an estimate of the time."""
    from ranvier.artifact.read import find
    from ranvier.build.estimate import build_seconds
    from ranvier.build.pack import check_tensors
    from ranvier.build.programs import programs
    from ranvier.cli.settings import artifact_roots
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
