"""What LoRA adapters cost on the device, engine and server left out: decode steps of one model.

Without slots, with empty ones, and with as many distinct adapters as rows, on q and v and on all
linears; and what placing one takes. Paired: the kinds take turns.

    python benchmarks/lora.py --model smollm2-135m --rows 32 --rank 16
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ranvier.cli.wire import locate, set_flags

CONTEXT = 128
BLOCK = 32
KINDS = ("no slots", "no adapter", "q and v", "all linears")


def main() -> None:
    given = arguments()
    set_flags()  # before jax makes a client
    with tempfile.TemporaryDirectory() as folder:
        root = given.artifacts or Path(folder)
        runners = open_runners(given, root)
        placed = fill_slots(given, runners)
        times = measure(given, runners)
    report(given, times, placed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--artifacts", type=Path, help="where builds are kept (default: nowhere)")
    return parser.parse_args()


Runners = dict[str, tuple[Any, Any]]
Times = dict[str, list[float]]


def open_runners(given: argparse.Namespace, root: Path) -> Runners:
    """A runner a kind and what its slots take; q and v have slots of their own."""
    from ranvier.build.build import artifact_key, build_artifact
    from ranvier.build.drafting import Source
    from ranvier.build.lora.form import adapter_form
    from ranvier.build.programs import Sizes
    from ranvier.core.buckets import BucketSet
    from ranvier.models.table import resolve
    from ranvier.native import library
    from ranvier.runtime.load import load_runner
    from ranvier.targets.table import find_target
    from ranvier.weights.checkpoint import open_checkpoint

    if not library.register():
        raise SystemExit("The CPU kernels are not built here.")
    checkpoint = open_checkpoint(locate(given.model))
    source = Source(checkpoint, resolve(checkpoint.config))
    bare = Sizes(
        dtype="bfloat16", kernels="cpu", max_model_len=2 * CONTEXT, max_num_seqs=given.rows,
        block_tokens=BLOCK, block_count=1 + given.rows * 2 * CONTEXT // BLOCK, kv_layout="block",
        buckets=BucketSet(tokens=tuple(sorted({given.rows, CONTEXT}))), logprobs_max=1, edits_max=4,
    )  # fmt: skip
    slots = replace(bare, adapter_slots=given.rows, adapter_rank_max=given.rank)
    few = replace(slots, adapter_modules=("q_proj", "v_proj"))
    opened = {}
    for sizes in (bare, few, slots):
        key = artifact_key(source, sizes, find_target("cpu"), "")
        folder = build_artifact([root], key, source, sizes, print)
        opened[sizes] = load_runner(folder, []), adapter_form(source.spec, sizes)
    return dict(zip(KINDS, (opened[bare], opened[slots], opened[few], opened[slots]), strict=True))


def fill_slots(given: argparse.Namespace, runners: Runners) -> dict[str, Any]:
    """Place a random adapter in every slot; (bytes, pieces, ms of the whole, ms of a piece)."""
    from ranvier.weights.lora.pack import pack_adapter
    from ranvier.weights.lora.read import Lora, LoraPair

    random, placed = np.random.default_rng(0), {}
    for kind in ("q and v", "all linears"):
        runner, form = runners[kind]
        pairs = {
            module.name.format(layer): LoraPair(
                random.standard_normal((given.rank, module.inputs), np.float32) / 99,
                random.standard_normal((module.outputs, given.rank), np.float32) / 99,
            )
            for module in form.modules
            for layer in range(form.layers)
        }
        adapter = pack_adapter(Lora("", given.rank, pairs), form)
        wholes, pieces = [], []
        for slot in range(1, given.rows + 1):
            start = last = time.perf_counter()
            for _ in runner.place_adapter(slot, adapter):
                now = time.perf_counter()
                pieces.append(now - last)
                last = now
            wholes.append(time.perf_counter() - start)
        placed[kind] = {
            "bytes": adapter.bytes, "pieces": len(pieces) // given.rows,
            "whole_ms": 1e3 * statistics.median(wholes), "piece_ms_max": 1e3 * max(pieces),
        }  # fmt: skip
    return placed


def plan_of(runner: Any, rows: int, kind: str) -> Any:
    from ranvier.core.step import Chunk, Sample, StepPlan

    per_row = 2 * CONTEXT // BLOCK
    chunks = [
        Chunk(
            CONTEXT, [7], list(range(1 + i * per_row, 1 + (i + 1) * per_row)),
            slot=i + 1 if kind in ("q and v", "all linears") else 0,
        )
        for i in range(rows)
    ]  # fmt: skip
    return StepPlan(runner.info.step(rows), chunks, [Sample(i, 0) for i in range(rows)])


def measure(given: argparse.Namespace, runners: Runners) -> Times:
    """Milliseconds of every step, by kind."""
    times: Times = {kind: [] for kind in KINDS}
    for _ in range(given.rounds):
        for kind in KINDS:
            runner = runners[kind][0]
            plan = plan_of(runner, given.rows, kind)
            for step in range(given.steps + 2):
                start = time.perf_counter()
                runner.collect(runner.dispatch(plan))
                if step > 1:
                    times[kind].append(1e3 * (time.perf_counter() - start))
    return times


def report(given: argparse.Namespace, times: Times, placed: dict[str, Any]) -> None:
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"\n{given.model}, {given.rows} rows, {given.rank} ranks, {CONTEXT} tokens of context")
    print(f"{'':14}{'ms a step':>12}{'least':>10}{'against no slots':>20}")
    for kind, value in medians.items():
        ratio, least = medians["no slots"] / value, min(times[kind])
        print(f"{kind:14}{value:12.2f}{least:10.2f}{ratio:19.3f}x")
    for kind, numbers in placed.items():
        print(
            f"placing {kind}: {numbers['bytes'] / 1e6:.1f} MB in {numbers['pieces']} pieces, "
            f"{numbers['whole_ms']:.2f} ms, the longest piece {numbers['piece_ms_max']:.2f} ms"
        )
    print(json.dumps({"ms": medians, "placed": placed, "rows": given.rows, "rank": given.rank}))


if __name__ == "__main__":
    main()
