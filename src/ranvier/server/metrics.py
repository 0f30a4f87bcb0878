"""Prometheus metrics by vLLM's names, rendered from the engine's statistics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ranvier.core.request import EngineStats

__all__ = ["Metrics"]

GAUGES = {
    "vllm:num_requests_running": ("requests_running", "Sequences in the batch."),
    "vllm:num_requests_waiting": ("requests_waiting", "Sequences in the queue."),
    "ranvier:kv_blocks_total": ("blocks_total", "KV blocks."),
    "ranvier:host_ms_p50": ("host_ms_p50", "Median host time of a step in ms."),
}
COUNTERS = {
    "vllm:prompt_tokens": ("prompt_tokens", "Prompt tokens admitted."),
    "vllm:generation_tokens": ("generation_tokens", "Tokens generated."),
    "vllm:num_preemptions": ("preemptions", "Sequences preempted."),
    "vllm:prefix_cache_queries": ("prefix_queries", "Tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_hits", "Tokens found in the prefix cache."),
    "ranvier:steps": ("steps", "Programs run."),
    "ranvier:bucket_padding_tokens": ("padding_tokens", "Padding tokens of all steps."),
    "ranvier:compiles_after_ready": ("compiles_after_ready", "Any increase is a fault."),
}


class Metrics:
    """One registry; `render` reads the statistics of the moment."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry()
        self._stats = EngineStats()
        self._registry.register(self)
        self.ignored = Counter(
            "ranvier:ignored_request_params", "Unknown request fields.", registry=self._registry
        )

    def render(self, stats: EngineStats) -> str:
        """The exposition text."""
        self._stats = stats
        return generate_latest(self._registry).decode()

    def collect(self) -> list[Metric]:
        """Called by the registry."""
        names, values = list(self._labels), list(self._labels.values())
        found: list[Metric] = []
        for name, (attribute, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(values, getattr(self._stats, attribute))
            found.append(gauge)
        for name, (attribute, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=names)
            counter.add_metric(values, getattr(self._stats, attribute))
            found.append(counter)
        total, free = self._stats.blocks_total, self._stats.blocks_free
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "1 is full.", labels=names)
        usage.add_metric(values, 1 - free / total if total else 0.0)
        return [*found, usage]
