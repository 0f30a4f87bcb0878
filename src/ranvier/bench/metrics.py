"""From records to figures, by vLLM's names and definitions: one JSON object."""

from __future__ import annotations

from typing import Any

import numpy as np

from ranvier.bench.load import Record
from ranvier.bench.options import OutputOptions
from ranvier.core.errors import ConfigError

__all__ = ["METRICS", "Wanted", "per_second", "percentile_word", "summarise"]

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
"""Metric to (short name, heading)."""
SLOS = ("ttft", "tpot", "e2el")


class Wanted:
    """Which metrics, percentiles and limits are asked for. Raises ConfigError for others."""

    def __init__(self, output: OutputOptions) -> None:
        self.metrics = [name.strip() for name in output.percentile_metrics.split(",") if name]
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"percentile_metrics: {name!r}; known: {', '.join(METRICS)}.")
        self.percentiles = [_percentile(text) for text in output.metric_percentiles.split(",")]
        self.goodput = dict(_limit(text) for text in output.goodput)


def summarise(records: list[Record], duration_s: float, wanted: Wanted) -> dict[str, Any]:
    """The figures of a run; only requests that succeeded count into times and tokens."""
    whole = [record for record in records if not record.error]
    tokens_in = sum(record.input_tokens for record in whole)
    tokens_out = sum(record.output_tokens for record in whole)
    good = sum(_is_good(record, wanted.goodput) for record in whole)
    per_token, together = per_second(whole)
    found: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(whole),
        "failed": len(records) - len(whole),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(whole) / duration_s,
        "request_goodput": good / duration_s if wanted.goodput else None,
        "output_throughput": tokens_out / duration_s,
        "total_token_throughput": (tokens_in + tokens_out) / duration_s,
        "input_lens": [record.input_tokens for record in records],
        "output_lens": [0 if record.error else record.output_tokens for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [record.itls_s for record in records],
        "latencies": [record.latency_s for record in records],
        "start_times": [record.start_s for record in records],
        "queue_times": [record.queue_s for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
        "max_output_tokens_per_s": float(max(per_token, default=0)),
        "max_concurrent_requests": int(max(together, default=0)),
        "rtfx": 0.0,
    }
    for name in wanted.metrics:
        found |= _spread(name, _values(name, whole), wanted.percentiles)
    return found


def per_second(records: list[Record]) -> tuple[list[int], list[int]]:
    """Pieces that came, and requests that were open, in each second since the first start."""
    if not records:
        return [], []
    first = min(record.start_s for record in records)
    seconds = int(max(record.end_s for record in records) - first) + 1
    pieces, together = [0] * seconds, [0] * seconds
    for record in records:
        for moment in record.piece_s:
            pieces[int(moment - first)] += 1
        for second in range(int(record.start_s - first), int(record.end_s - first) + 1):
            together[second] += 1
    return pieces, together


def percentile_word(value: float) -> str:
    """99 rather than 99.0 in names."""
    return str(int(value)) if value == int(value) else str(value)


def _values(name: str, whole: list[Record]) -> list[float]:
    if name == "ttft":
        return [record.ttft_s for record in whole]
    if name == "tpot":
        return [record.tpot_s for record in whole if record.output_tokens > 1]
    if name == "itl":
        return [gap for record in whole for gap in record.itls_s]
    return [record.latency_s for record in whole]


def _spread(name: str, values_s: list[float], percentiles: list[float]) -> dict[str, float]:
    ms = np.asarray(values_s or [0.0]) * 1e3
    found = {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
    }
    for share in percentiles:
        found[f"p{percentile_word(share)}_{name}_ms"] = float(np.percentile(ms, share))
    return found


def _is_good(record: Record, limits: dict[str, float]) -> bool:
    values = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.latency_s}
    return all(values[name] * 1e3 <= limit for name, limit in limits.items())


def _percentile(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ConfigError(f"metric_percentiles: {text!r} is not in [0, 100].")
    return value


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition(":")
    try:
        limit = float(value)
    except ValueError:
        limit = -1.0
    if name not in SLOS or not limit > 0:
        raise ConfigError(f"goodput: {text!r} must be NAME:MS with a NAME of {', '.join(SLOS)}.")
    return name, limit
