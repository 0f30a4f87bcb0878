"""Prometheus metrics by vLLM's names: the engine's counters, requests as seen here, HTTP.

Names, kinds and help texts are in the tables below; docs/metrics.md is checked against them.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from ranvier.core.request import EngineStats, Event, Request
from ranvier.server.gate import Gate
from ranvier.server.options import ServerOptions
from ranvier.version import __version__

__all__ = ["Histogram", "HttpMetrics", "Metrics", "SequenceTimes"]

LATENCY = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
           7680)  # fmt: skip
FIRST = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
         160, 640, 2560)  # fmt: skip
TOKEN = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
         80)  # fmt: skip
STEP = (1, 8, *(2**i for i in range(4, 15)))
HIGH = (.01, .025, .05, .075, .1, .25, .5, .75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30,
        60)  # fmt: skip

GAUGES: dict[str, tuple[Callable[[EngineStats], float], str]] = {
    "vllm:num_requests_running": (lambda s: s.requests_running, "Sequences in the batch."),
    "vllm:num_requests_waiting": (lambda s: s.requests_waiting, "Sequences in the queue."),
    "vllm:kv_cache_usage_perc": (lambda s: _usage(s), "Share of KV blocks in use; 1 is full."),
    "ranvier:kv_blocks_total": (lambda s: s.blocks_total, "KV blocks."),
    "ranvier:kv_blocks_used": (lambda s: s.blocks_total - s.blocks_free, "KV blocks in use."),
    "ranvier:adapters": (lambda s: s.adapter_names, "Adapters that requests can name."),
    "ranvier:adapter_host_bytes": (lambda s: s.adapter_host_bytes, "Adapters in host memory."),
    "ranvier:host_ms_p50": (lambda s: s.host_ms_p50, "Median host time of a step in ms."),
}
COUNTERS: dict[str, tuple[Callable[[EngineStats], float], str]] = {
    "vllm:prompt_tokens": (lambda s: s.prompt_tokens, "Prompt tokens admitted."),
    "vllm:prompt_tokens_cached": (lambda s: s.prefix_hits, "Prompt tokens found in the cache."),
    "vllm:generation_tokens": (lambda s: s.generation_tokens, "Tokens generated."),
    "vllm:num_preemptions": (lambda s: s.preemptions, "Sequences preempted."),
    "vllm:prefix_cache_queries": (lambda s: s.prefix_queries, "Tokens looked up."),
    "vllm:prefix_cache_hits": (lambda s: s.prefix_hits, "Tokens found."),
    "vllm:mm_cache_queries": (lambda s: s.mm_queries, "Pictures looked up among encoded ones."),
    "vllm:mm_cache_hits": (lambda s: s.mm_hits, "Pictures found encoded."),
    "vllm:spec_decode_num_drafts": (lambda s: s.drafts, "Drafts verified, one a sequence a step."),
    "vllm:spec_decode_num_draft_tokens": (lambda s: s.draft_tokens, "Tokens guessed."),
    "vllm:spec_decode_num_accepted_tokens": (lambda s: s.accepted_tokens, "Guesses that stood."),
    "ranvier:adapter_slot_hits": (lambda s: s.adapter_hits, "Sequences whose adapter was there."),
    "ranvier:adapter_slot_misses": (lambda s: s.adapter_misses, "Adapters moved into a slot."),
    "ranvier:steps": (lambda s: s.steps, "Programs run."),
    "ranvier:bucket_padding_tokens": (lambda s: s.padding_tokens, "Padding of all steps."),
    "ranvier:compiles_after_ready": (lambda s: s.compiles_after_ready, "Any is a fault."),
}
REQUEST: dict[str, tuple[tuple[float, ...] | None, str]] = {
    "e2e_request_latency_seconds": (LATENCY, "Arrival to last token."),
    "request_queue_time_seconds": (LATENCY, "Arrival to first step."),
    "request_inference_time_seconds": (LATENCY, "First step to last token."),
    "request_prefill_time_seconds": (LATENCY, "First step to first token."),
    "request_decode_time_seconds": (LATENCY, "First token to last token."),
    "time_to_first_token_seconds": (FIRST, "Arrival to first token."),
    "inter_token_latency_seconds": (TOKEN, "Between two tokens."),
    "request_time_per_output_token_seconds": (TOKEN, "Decode time per token after the first."),
    "iteration_tokens_total": (STEP, "Tokens of a step; advances with every step."),
    "request_prompt_tokens": (None, "Prompt tokens of a sequence."),
    "request_generation_tokens": (None, "Tokens generated for a sequence."),
    "request_max_num_generation_tokens": (None, "Most tokens generated for a sequence."),
    "request_params_max_tokens": (None, "max_tokens, where given."),
    "request_prefill_kv_computed_tokens": (None, "Prompt tokens computed, not cached."),
    "request_params_n": ((1, 2, 5, 10, 20), "n of a request."),
}
"""Histograms, prefix vllm:, and their buckets; None: 1, 2, 5, 10, ... up to the model's length."""
LEGACY: dict[str, Callable[[EngineStats], float]] = {
    "vllm:gpu_cache_usage_perc": lambda s: _usage(s),
    "vllm:cpu_cache_usage_perc": lambda s: 0.0,
    "vllm:num_requests_swapped": lambda s: 0.0,
    "vllm:gpu_prefix_cache_hit_rate": lambda s: s.prefix_hits / max(s.prefix_queries, 1),
}
REASONS = ("stop", "length", "abort", "error", "repetition")
LIMIT_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")


class Histogram:
    """Counts per bucket; a value costs one binary search."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value so often."""
        self._counts[bisect_left(self.bounds, value)] += count
        self._sum += value * count

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum of values."""
        found, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return found, self._sum


@dataclass
class SequenceTimes:
    """When things happened to a sequence, by the server's clock; `queue_s` is the engine's."""

    request: Request
    arrival_s: float
    queue_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    gap_s: float = 0.0
    generated: int = 0
    cached: int = 0

    @classmethod
    def of(cls, request: Request) -> SequenceTimes:
        return cls(request, time.monotonic())

    def took(self, event: Event, now_s: float) -> None:
        """Take the time of an event."""
        if not event.token_ids:
            return
        if self.first_s is None:
            self.first_s, self.queue_s = now_s, event.queue_s
            self.cached = event.cached_tokens
        self.gap_s, self.last_s = now_s - self.last_s, now_s
        self.generated += len(event.token_ids)


class Metrics:
    """Everything that /metrics shows but HTTP's own."""

    def __init__(self, options: ServerOptions, model_len_max: int) -> None:
        self._options = options
        self._labels = {"model_name": options.model_name, "engine": "0"}
        digest = hashlib.sha256(repr(sorted(options.cache_labels.items())).encode()).hexdigest()
        self.fingerprint = f"ranvier-{__version__}-{digest[:8]}"
        series = tuple(_series(model_len_max))
        self._histograms = {
            name: Histogram(series if bounds is None else bounds)
            for name, (bounds, _) in REQUEST.items()
        }
        self._finished = dict.fromkeys(REASONS, 0)
        self.ignored_params = 0
        self.adapter_slots = 0
        self._loads = Histogram(FIRST)
        self.http = HttpMetrics()
        self._sources: tuple[Callable[[], EngineStats], Gate] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def attach(self, stats: Callable[[], EngineStats], gate: Gate) -> None:
        """Where gauges come from."""
        self._sources = (stats, gate)

    def heard(self, stats: EngineStats) -> None:
        """The engine's numbers have come: the steps since the last ones."""
        for tokens in stats.step_tokens:
            self._histograms["iteration_tokens_total"].add(tokens)
        for seconds in stats.adapter_load_s:
            self._loads.add(seconds)

    def took(self, times: SequenceTimes, count: int) -> None:
        """A sequence has new tokens."""
        if times.generated == count:
            first_s = (times.first_s or 0.0) - times.arrival_s
            self._histograms["time_to_first_token_seconds"].add(first_s)
        else:
            self._histograms["inter_token_latency_seconds"].add(times.gap_s / count, count)

    def finished(self, times: SequenceTimes, reason: str) -> None:
        """A sequence has ended."""
        self._finished[reason] = self._finished.get(reason, 0) + 1
        params, prompt = times.request.params, len(times.request.prompt_token_ids)
        values: dict[str, float] = {
            "request_prompt_tokens": prompt,
            "request_generation_tokens": times.generated,
            "request_max_num_generation_tokens": times.generated,
            "request_prefill_kv_computed_tokens": prompt - times.cached,
            "request_params_n": params.n,
        }
        if params.max_tokens is not None:
            values["request_params_max_tokens"] = params.max_tokens
        if times.first_s is not None:
            values |= _durations(times, times.first_s)
        for name, value in values.items():
            self._histograms[name].add(value)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def collect(self) -> list[Metric]:
        """Called by the registry."""
        if self._sources is None:
            return []
        stats, gate = self._sources[0](), self._sources[1]
        found: list[Metric] = []
        for name, (value, text) in GAUGES.items():
            found.append(_family(GaugeMetricFamily, name, text, self._labels, value(stats)))
        for name, (value, text) in COUNTERS.items():
            found.append(_family(CounterMetricFamily, name, text, self._labels, value(stats)))
        if self._options.metrics_compat:
            for name, value in LEGACY.items():
                text = "Old name, for old dashboards."
                found.append(_family(GaugeMetricFamily, name, text, self._labels, value(stats)))
        return [*found, *self._labelled(stats, gate), *self._timed(), *self.http.collect()]

    def _labelled(self, stats: EngineStats, gate: Gate) -> list[Metric]:
        """Metrics with labels of their own."""
        finished = CounterMetricFamily(
            "vllm:request_success",
            "Sequences that ended.",
            labels=[*self._labels, "finished_reason"],
        )
        for reason, count in self._finished.items():
            finished.add_metric([*self._labels.values(), reason], count)
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Why they wait.",
            labels=[*self._labels, "reason"],
        )
        for reason, count in (("capacity", stats.requests_waiting), ("deferred", 0)):
            waiting.add_metric([*self._labels.values(), reason], count)
        source = CounterMetricFamily(
            "vllm:prompt_tokens_by_source", "Where KV came from.", labels=[*self._labels, "source"]
        )
        computed = stats.prompt_tokens - stats.prefix_hits
        for name, count in (("local_compute", computed), ("local_cache_hit", stats.prefix_hits)):
            source.add_metric([*self._labels.values(), name], max(count, 0))
        stood = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Guesses that stood, by place in their draft.",
            labels=[*self._labels, "position"],
        )
        for place, count in enumerate(stats.accepted_per_position):
            stood.add_metric([*self._labels.values(), str(place)], count)
        refused = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused.", labels=["model_name", "reason"]
        )
        for reason in LIMIT_REASONS:
            refused.add_metric([self._options.model_name, reason], gate.rejections[reason])
        cache = {**self._options.cache_labels, "engine": "0"}
        config = GaugeMetricFamily("vllm:cache_config_info", "Always 1.", labels=list(cache))
        config.add_metric(list(cache.values()), 1)
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with open requests; the value is the time.",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        names = [",".join(found) for found in (stats.adapters_waiting, stats.adapters_running)]
        lora.add_metric([str(self.adapter_slots), *names], time.time() if any(names) else 0)
        loads = HistogramMetricFamily(
            "ranvier:adapter_load_seconds", "Reading an adapter's files.", labels=[*self._labels]
        )
        loads.add_metric([*self._labels.values()], *self._loads.buckets())
        ignored = CounterMetricFamily("ranvier:ignored_request_params", "Unknown request fields.")
        ignored.add_metric([], self.ignored_params)
        return [finished, waiting, source, stood, refused, config, lora, loads, ignored]

    def _timed(self) -> list[Metric]:
        found: list[Metric] = []
        names = {name: f"vllm:{name}" for name in REQUEST}
        if self._options.metrics_compat:
            names["inter_token_latency_seconds "] = "vllm:time_per_output_token_seconds"
        for name, full in names.items():
            family = HistogramMetricFamily(full, REQUEST[name.strip()][1], labels=[*self._labels])
            family.add_metric([*self._labels.values()], *self._histograms[name.strip()].buckets())
            found.append(family)
        return found


class HttpMetrics:
    """http_*: what vLLM's instrumentation counts, for the routes that it counts."""

    UNCOUNTED = frozenset({"/metrics", "/health", "/live", "/load", "/ping", "/version"})

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str], int] = {}
        self._sizes: dict[str, list[int]] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._all = Histogram(HIGH)

    def request_done(
        self, method: str, handler: str, status: int, *, seconds: float, sizes: tuple[int, int]
    ) -> None:
        """Count a request; `sizes` are those of its body and of its answer."""
        if handler in self.UNCOUNTED:
            return
        method = method if method in ("GET", "POST", "OPTIONS", "HEAD") else "other"
        key = (handler, method, f"{status // 100}xx")
        self._requests[key] = self._requests.get(key, 0) + 1
        own = self._sizes.setdefault(handler, [0, 0, 0])
        for i, value in enumerate((1, *sizes)):
            own[i] += value
        self._durations.setdefault((handler, method), Histogram((0.1, 0.5, 1))).add(seconds)
        self._all.add(seconds)

    def collect(self) -> list[Metric]:
        """Families of the moment."""
        requests = CounterMetricFamily(
            "http_requests", "Requests.", labels=["handler", "method", "status"]
        )
        for key, count in self._requests.items():
            requests.add_metric(key, count)
        found: list[Metric] = [requests]
        for i, kind in enumerate(("request", "response"), 1):
            name = f"http_{kind}_size_bytes"
            size = SummaryMetricFamily(name, f"Bytes of {kind} bodies.", labels=["handler"])
            for handler, own in self._sizes.items():
                size.add_metric([handler], own[0], own[i])
            found.append(size)
        duration = HistogramMetricFamily(
            "http_request_duration_seconds", "Duration.", labels=["handler", "method"]
        )
        for pair, histogram in self._durations.items():
            duration.add_metric(pair, *histogram.buckets())
        every = HistogramMetricFamily("http_request_duration_highr_seconds", "Duration of all.")
        every.add_metric([], *self._all.buckets())
        return [*found, duration, every]


def _durations(times: SequenceTimes, first_s: float) -> dict[str, float]:
    prefill_s = max(first_s - times.arrival_s - times.queue_s, 0.0)
    decode_s = times.last_s - first_s
    found = {
        "e2e_request_latency_seconds": times.last_s - times.arrival_s,
        "request_queue_time_seconds": times.queue_s,
        "request_prefill_time_seconds": prefill_s,
        "request_decode_time_seconds": decode_s,
        "request_inference_time_seconds": prefill_s + decode_s,
    }
    if times.generated > 1:
        found["request_time_per_output_token_seconds"] = decode_s / (times.generated - 1)
    return found


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str, text: str, labels: dict[str, str], value: float,
) -> Metric:  # fmt: skip
    family = kind(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _usage(stats: EngineStats) -> float:
    return 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0


def _series(largest: int) -> Iterable[int]:
    """1, 2, 5, 10, 20, 50, ... as far as `largest`."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale > largest:
                return
            yield factor * scale
        scale *= 10
