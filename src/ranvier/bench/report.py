"""What a run of `bench serve` prints and writes: vLLM's block, line by line, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ranvier.bench.metrics import METRICS, Wanted, percentile_word
from ranvier.bench.options import OutputOptions, TargetOptions, TrafficOptions
from ranvier.core.errors import ConfigError

__all__ = ["block", "describe", "result_path", "save"]

WIDTH = 50
ERRORS_TOLD = 10
DETAILS = (
    "input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors",
    "latencies", "queue_times",
)  # fmt: skip


def block(result: dict[str, Any], wanted: Wanted, traffic: TrafficOptions) -> str:
    """The printed block, 50 columns wide."""
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [f"{name:<40} {value:<10}" for name, value in _totals(result, wanted, traffic)]
    for metric in wanted.metrics:
        short, heading = METRICS[metric]
        lines.append(heading.center(WIDTH, "-"))
        names = {f"Mean {short}": f"mean_{metric}_ms", f"Median {short}": f"median_{metric}_ms"}
        for share in map(percentile_word, wanted.percentiles):
            names[f"P{share} {short}"] = f"p{share}_{metric}_ms"
        lines += [f"{name + ' (ms):':<40} {result[key]:<10.2f}" for name, key in names.items()]
    return "\n".join([*lines, "=" * WIDTH])


def describe(
    target: TargetOptions,
    traffic: TrafficOptions,
    output: OutputOptions,
    names: dict[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """The run's own fields; `names` has model_id, tokenizer_id and num_prompts."""
    found: dict[str, Any] = {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": target.backend,
        "backend": target.backend,
        "label": output.label,
        **names,
    }
    for text in output.metadata:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"metadata: {text!r} must be NAME=VALUE.")
        found[key] = value
    rate = traffic.rate
    found["request_rate"] = "inf" if math.isinf(rate) else rate
    found["burstiness"] = float(traffic.burstiness)
    found["max_concurrency"] = traffic.max_concurrency
    if traffic.ramp_up_strategy is not None:
        for name in ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps"):
            found[name] = getattr(traffic, name)
    return found


def result_path(output: OutputOptions, traffic: TrafficOptions, run: dict[str, Any]) -> Path | None:
    """Where the result goes, by vLLM's rule; None when it is not kept."""
    if not (output.save_result or output.append_result):
        return None
    folder = Path(output.result_dir or ".")
    if output.result_filename:
        return folder / output.result_filename
    rate = f"{run['request_rate']}qps"
    if traffic.ramp_up_strategy is not None:
        ramp = f"{traffic.ramp_up_start_rps}qps-{traffic.ramp_up_end_rps}qps"
        rate = f"ramp-up-{traffic.ramp_up_strategy}-{ramp}"
    limit = traffic.max_concurrency
    concurrency = "" if limit is None else f"-concurrency{limit}"
    model = str(run["model_id"]).split("/")[-1]
    return (
        folder / f"{output.label or run['backend']}-{rate}{concurrency}-{model}-{run['date']}.json"
    )


def save(path: Path, output: OutputOptions, run: dict[str, Any], result: dict[str, Any]) -> None:
    """Write, or append as a line. Raises ConfigError when the file cannot be written."""
    kept = {k: v for k, v in result.items() if output.save_detailed or k not in DETAILS}
    text = json.dumps({**run, **kept}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if output.append_result else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from None


def _totals(
    result: dict[str, Any], wanted: Wanted, traffic: TrafficOptions
) -> Iterator[tuple[str, str]]:
    yield "Successful requests:", f"{result['completed']}"
    yield "Failed requests:", f"{result['failed']}"
    if traffic.max_concurrency is not None:
        yield "Maximum request concurrency:", f"{traffic.max_concurrency}"
    if not math.isinf(traffic.rate):
        yield "Request rate configured (RPS):", f"{traffic.rate:.2f}"
    yield "Benchmark duration (s):", f"{result['duration']:.2f}"
    yield "Total input tokens:", f"{result['total_input_tokens']}"
    yield "Total generated tokens:", f"{result['total_output_tokens']}"
    yield "Request throughput (req/s):", f"{result['request_throughput']:.2f}"
    if wanted.goodput:
        yield "Request goodput (req/s):", f"{result['request_goodput']:.2f}"
    yield "Output token throughput (tok/s):", f"{result['output_throughput']:.2f}"
    yield "Peak output token throughput (tok/s):", f"{result['max_output_tokens_per_s']:.2f}"
    yield "Peak concurrent requests:", f"{result['max_concurrent_requests']:.2f}"
    yield "Total token throughput (tok/s):", f"{result['total_token_throughput']:.2f}"
