"""The engine's statistics under vLLM's metric names, for LLM.get_metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from ranvier.core.request import EngineStats

__all__ = ["Counter", "Gauge", "Metric", "Vector", "snapshot"]

GAUGES = {
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
}
COUNTERS = {
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:generation_tokens": "generation_tokens",
    "vllm:num_preemptions": "preemptions",
    "vllm:prefix_cache_queries": "prefix_queries",
    "vllm:prefix_cache_hits": "prefix_hits",
    "vllm:mm_cache_queries": "mm_queries",
    "vllm:mm_cache_hits": "mm_hits",
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "draft_tokens",
    "vllm:spec_decode_num_accepted_tokens": "accepted_tokens",
}
VECTOR = "vllm:spec_decode_num_accepted_tokens_per_pos"


@dataclass(frozen=True)
class Metric:
    """A named value; `labels` are Prometheus labels."""

    name: str
    labels: dict[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Counter(Metric):
    """A count that only grows."""

    value: int


@dataclass(frozen=True)
class Vector(Metric):
    """Counts that only grow, by position."""

    values: list[int]


@dataclass(frozen=True)
class Gauge(Metric):
    """A value of this moment."""

    value: float


def snapshot(stats: EngineStats) -> list[Metric]:
    """Every metric of the engine now."""
    gauges = [Gauge(name, float(getattr(stats, source))) for name, source in GAUGES.items()]
    used = 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
    counters = [Counter(name, getattr(stats, source)) for name, source in COUNTERS.items()]
    vector = Vector(VECTOR, stats.accepted_per_position)
    return [*gauges, Gauge("vllm:kv_cache_usage_perc", used), *counters, vector]
