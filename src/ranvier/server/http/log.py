"""What the server logs of requests: access lines always, requests and outputs when asked to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import Scope

from ranvier.core.request import EngineStats
from ranvier.server.options import ServerOptions

if TYPE_CHECKING:
    from ranvier.server.answer import Answer, Job

__all__ = ["RequestLog", "StatsLine", "log_access"]

ACCESS = logging.getLogger("ranvier.access")
REQUESTS = logging.getLogger("ranvier.requests")
STATS = logging.getLogger("ranvier.stats")


class RequestLog:
    """--enable-log-requests and --enable-log-outputs; texts are cut at --max-log-len."""

    def __init__(self, options: ServerOptions) -> None:
        self._has_requests = options.enable_log_requests
        self._has_outputs = options.enable_log_outputs
        self._len_max = options.max_log_len

    def request(self, job: Job) -> None:
        """A request that is about to run."""
        if self._has_requests:
            ids = [request.prompt_token_ids[: self._len_max] for request in job.requests]
            REQUESTS.info("Received request %s: params: %s, ids: %s", job.id, job.params, ids)

    def output(self, job: Job, answer: Answer) -> None:
        """What a request has generated when it ends."""
        if self._has_outputs:
            texts = [text[: self._len_max] for text in answer.texts]
            REQUESTS.info("Generated response %s: %r", job.id, texts)


def log_access(scope: Scope, status: int) -> None:
    """One line a request, as uvicorn writes it."""
    client = scope.get("client") or ("", 0)
    path = scope["path"].encode("unicode_escape").decode()
    ACCESS.info(
        '%s:%s - "%s %s HTTP/%s" %d',
        *client[:2], scope["method"], path, scope["http_version"], status,
    )  # fmt: skip


class StatsLine:
    """vLLM's line of throughput and load, from what was counted since the last one."""

    def __init__(self, stats: Callable[[], EngineStats], now_s: float) -> None:
        self._stats = stats
        self._last, self._last_s = stats(), now_s

    def log(self, now_s: float) -> None:
        """Log it; at DEBUG while nothing happens."""
        stats, last, seconds = self._stats(), self._last, max(now_s - self._last_s, 1e-9)
        self._last, self._last_s = stats, now_s
        prompt = (stats.prompt_tokens - last.prompt_tokens) / seconds
        generated = (stats.generation_tokens - last.generation_tokens) / seconds
        used = 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
        hits = stats.prefix_hits / stats.prefix_queries if stats.prefix_queries else 0.0
        is_idle = not (prompt or generated or stats.requests_running or stats.requests_waiting)
        STATS.log(
            logging.DEBUG if is_idle else logging.INFO,
            "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
            "Running: %d reqs, Waiting: %d reqs, KV cache usage: %.1f%%, "
            "Prefix cache hit rate: %.1f%%",
            prompt, generated, stats.requests_running, stats.requests_waiting,
            100 * used, 100 * hits,
        )  # fmt: skip
