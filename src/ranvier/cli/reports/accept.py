"""On-device acceptance: every program of an artifact against the CPU in f32, and a report to send.

By hand: scripts/neuron-accept MODEL [the options of serve] [--out FILE]. It runs on any target; it
was made for Neuron hardware, on which it has not run yet.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.cli.options.flags import Parser, add_engine_arguments, engine_options
from ranvier.cli.options.settings import Options, say
from ranvier.core.config import EngineConfig
from ranvier.core.errors import RanvierError
from ranvier.core.program import ProgramShape
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan, StepResult
from ranvier.engine.loop import Engine

__all__ = ["accept", "main"]

LENGTH_MAX = 256
"""Tokens of the test sequence: the reference computes every one of them in f32."""
GENERATED = 16
TIMED_STEPS = 20
SEED = 7
BOUNDS = ((5, 0.01), (20, 0.02))
"""NxD Inference's bounds for the top 5 and the top 50 logits, of which a step returns 20."""
ATOL = 1e-5


@dataclass(frozen=True)
class _Case:
    """One row of a program's step: the tokens before it, its own, and its blocks."""

    start: int
    count: int
    blocks: list[int]

    @property
    def end(self) -> int:
        return self.start + self.count


def accept(options: Options) -> dict[str, Any]:
    """Check every program's log-probabilities, greedy tokens and speed; `passed` sums up."""
    ids, logits, tokens = _reference(options)
    from ranvier.cli.wire import ensure_artifact, open_runner

    phases: list[tuple[str, float]] = []
    folder = ensure_artifact(options)
    runner = open_runner(folder, options, phases)
    rows = []
    for shape in runner.info.programs:
        say(f"checking {shape.name}")
        rows.append(_check_program(runner, shape, ids, logits))
    found = _generate(runner, ids[: len(ids) - GENERATED])
    same = sum(a == b for a, b in zip(found, tokens, strict=True))
    report = {
        "artifact": folder.name,
        "target": options.target or options.device,
        "device": _device(),
        "load_s": {name: round(seconds, 3) for name, seconds in phases},
        "programs": rows,
        "tokens": {"expected": tokens, "found": found, "equal": same},
        "passed": all(row["passed"] for row in rows) and same == len(tokens),
    }
    runner.close()
    return report


def main(arguments: list[str] | None = None) -> int:
    """Print a table and one JSON line; 0 when everything passed."""
    parser = Parser(prog="neuron-accept", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the JSON report here too")
    add_engine_arguments(parser)
    try:
        given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        report = accept(engine_options(given))
    except RanvierError as error:
        print(f"neuron-accept: error: {error}", file=sys.stderr)
        return error.exit_code
    for row in report["programs"]:
        verdict = "ok" if row["passed"] else "FAILED"
        print(f"{row['name']:<24} {verdict:<7} error {row['error']:.2e}  {row['ms_p50']:8.2f} ms  "
              f"{row['tokens_per_s']:10.1f} tok/s", file=sys.stderr)  # fmt: skip
    line = json.dumps(report)
    print(line)
    if given.out is not None:
        given.out.write_text(line + "\n")
    return 0 if report["passed"] else 1


def _reference(options: Options) -> tuple[list[int], NDArray[np.float32], list[int]]:
    """(token ids, their logits in f32 on the CPU, greedy tokens after the shortened prompt)."""
    from ranvier.build.logits import LogitsModel
    from ranvier.cli.wire import open_model, set_flags
    from ranvier.models.table import resolve
    from ranvier.native import library
    from ranvier.runtime.device import on_cpu

    set_flags()
    checkpoint = open_model(options)
    spec = resolve(checkpoint.config)
    length = min(options.max_model_len or LENGTH_MAX, spec.model_len_max, LENGTH_MAX)
    ids = np.random.default_rng(SEED).integers(3, spec.vocab_size, length).tolist()
    kernels = "cpu" if library.register() else "reference"
    say(f"computing the reference of {length} tokens")
    with on_cpu():
        model = LogitsModel(checkpoint, spec, dtype="float32", kernels=kernels, tokens_max=length)
        logits = model.run(ids)
        tokens, _ = model.greedy(ids[: length - GENERATED], GENERATED)
    return ids, logits, tokens


def _check_program(
    runner: Any, shape: ProgramShape, ids: list[int], logits: NDArray[np.float32]
) -> dict[str, Any]:
    """Run one program on a full step and compare each row's top log-probabilities."""
    info: RunnerInfo = runner.info
    cases = _cases(info, shape, len(ids))
    _fill(runner, cases[0], ids)
    chunks = [Chunk(case.start, ids[case.start : case.end], case.blocks) for case in cases]
    samples = [Sample(i, case.count - 1, logprobs=BOUNDS[-1][0]) for i, case in enumerate(cases)]
    plan, times = StepPlan(shape, chunks, samples), []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        result = runner.collect(runner.dispatch(plan))
        times.append(time.perf_counter() - start)
    errors = [_error(result, row, logits[case.end - 1]) for row, case in enumerate(cases)]
    median = statistics.median(times)
    worst = max(error for error, _ in errors)
    return {
        "name": shape.name,
        "passed": all(is_within for _, is_within in errors),
        "error": worst,
        "rows": len(cases),
        "ms_p50": round(1e3 * median, 3),
        "tokens_per_s": round(plan.token_count / median, 1),
    }


def _cases(info: RunnerInfo, shape: ProgramShape, length: int) -> list[_Case]:
    """Row 0 as long as the program and the test sequence allow; the others at position 0."""
    context = min(shape.context or length, length)
    own = 1 if shape.family == "decode" else min(shape.tokens, context)
    blocks = list(range(1, 1 + -(-context // info.block_tokens)))
    first = _Case(context - own, own, blocks)
    spare = range(1 + len(blocks), info.block_count)
    others = min(shape.rows - 1, shape.tokens - own, len(spare))
    return [first, *(_Case(0, 1, [spare[i]]) for i in range(others))]


def _fill(runner: Any, case: _Case, ids: list[int]) -> None:
    """Write the keys and values of the tokens before a case, by the programs there are."""
    info, done = runner.info, 0
    while done < case.start:
        count = min(case.start - done, info.tokens_max)
        end = done + count
        program = info.step(count) if info.is_ragged else info.prefill(count, end)
        plan = StepPlan(program, [Chunk(done, ids[done:end], case.blocks)], [])
        runner.collect(runner.dispatch(plan))
        done = end


def _error(result: StepResult, row: int, logits: NDArray[np.float32]) -> tuple[float, bool]:
    """(largest error of the top log-probabilities, whether it keeps NxD Inference's bounds)."""
    top = float(logits.max())
    logprobs = logits - (top + float(np.log(np.exp(logits - top).sum())))
    order, worst, is_within = np.argsort(-logits, kind="stable"), 0.0, True
    found = dict(zip(result.top_ids[row].tolist(), result.top_logprobs[row].tolist(), strict=True))
    for count, rtol in BOUNDS:
        allowed = ATOL + rtol * float(np.abs(logits[order[:count]]).max())
        for token in order[:count].tolist():
            # A token that fell out of the top is at most as likely as the last that is in it.
            error = abs(found.get(token, min(found.values())) - float(logprobs[token]))
            worst, is_within = max(worst, error), is_within and error <= allowed
    return worst, is_within


def _generate(runner: Any, prompt: list[int]) -> list[int]:
    """Greedy tokens by the engine over this runner."""
    engine = Engine(runner, EngineConfig(max_num_batched_tokens=runner.info.tokens_max))
    params = SamplingParams(temperature=0, max_tokens=GENERATED, ignore_eos=True)
    engine.admit(Request(request_id="accept", prompt_token_ids=prompt, params=params, seed=0))
    tokens: list[int] = []
    while engine.has_work:
        for event in engine.turn():
            tokens += event.token_ids
            if event.error:
                raise RanvierError(f"The device failed: {event.error}")
    return tokens


def _device() -> dict[str, str]:
    from ranvier.runtime.device import describe_default

    return describe_default()


if __name__ == "__main__":
    sys.exit(main())
