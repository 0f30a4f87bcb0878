"""The load: requests sent when they are due, and the moment of every piece of every answer.

At a finite rate a request's clock starts when it is due, not when it could be sent: a full
concurrency limit or a late event loop counts as the user's waiting. Where all are due at once and
the concurrency is limited, the load is a closed one and the clock starts with a free slot;
`queue_s` then holds the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ranvier.bench.dataset import Sample
from ranvier.client.openai import Server, chunk_text
from ranvier.core.errors import ConfigError, ServerError

__all__ = ["Plan", "Record", "run_load", "wait_for_server"]

REQUEST_S_MAX = 6 * 3600
FILES_SPARE = 256
RETRY_S = 0.5


@dataclass
class Record:
    """What became of one request. Times are in seconds of time.perf_counter."""

    sample: Sample
    start_s: float = 0.0
    queue_s: float = 0.0
    piece_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.piece_s[0] - self.start_s if self.piece_s else 0.0

    @property
    def itls_s(self) -> list[float]:
        """Times between successive pieces of the answer."""
        return [b - a for a, b in zip(self.piece_s, self.piece_s[1:], strict=False)]

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for a single one."""
        rest = self.output_tokens - 1
        return (self.latency_s - self.ttft_s) / rest if rest > 0 else 0.0


@dataclass(frozen=True)
class Plan:
    """What a run sends where and when."""

    server: Server
    route: str
    make_body: Callable[[Sample], dict[str, Any]]
    due_s: list[float]
    concurrency_max: int | None = None
    id_prefix: str = "bench-"
    is_shown: bool = True

    @property
    def is_closed(self) -> bool:
        return self.concurrency_max is not None and not any(self.due_s)


async def run_load(plan: Plan, samples: list[Sample]) -> tuple[list[Record], float]:
    """Send every sample; (records in the samples' order, seconds from start to the last end)."""
    _allow_files(plan.concurrency_max or len(samples))
    records = [Record(sample) for sample in samples]
    gate = asyncio.Semaphore(plan.concurrency_max or len(samples))
    start_s = time.perf_counter()
    with tqdm(total=len(samples), disable=None if plan.is_shown else True) as bar:

        async def one(index: int) -> None:
            await _one(plan, records[index], start_s + plan.due_s[index], gate, index)
            bar.update()

        async with asyncio.TaskGroup() as group:
            for index in range(len(samples)):
                group.create_task(one(index))
    return records, time.perf_counter() - start_s


async def wait_for_server(plan: Plan, sample: Sample, seconds: float) -> None:
    """Ask once, again until an answer comes or the time is over. Raises ServerError."""
    until_s = time.perf_counter() + seconds
    while True:
        record = Record(sample)
        await _ask(plan, record, 0)
        if not record.error:
            return
        if time.perf_counter() >= until_s:
            raise ServerError(f"The server does not answer: {record.error}")
        await asyncio.sleep(RETRY_S)


async def _one(
    plan: Plan, record: Record, due_s: float, gate: asyncio.Semaphore, index: int
) -> None:
    delay_s = due_s - time.perf_counter()
    if delay_s > 0:
        await asyncio.sleep(delay_s)
    async with gate:
        sent_s = time.perf_counter()
        record.queue_s = sent_s - due_s
        record.start_s = sent_s if plan.is_closed else due_s
        await _ask(plan, record, index)


async def _ask(plan: Plan, record: Record, index: int) -> None:
    headers = {"X-Request-Id": f"{plan.id_prefix}{index}"}
    body = {**plan.make_body(record.sample), "stream": True}
    body["stream_options"] = {"include_usage": True}
    try:
        async with asyncio.timeout(REQUEST_S_MAX):
            async for chunk in plan.server.stream(plan.route, body, headers):
                _take(record, chunk)
    except (ServerError, TimeoutError) as error:
        record.error = str(error) or "timed out"
    record.end_s = record.piece_s[-1] if record.piece_s else time.perf_counter()
    # A server that reports no usage: its pieces are counted.
    record.output_tokens = record.output_tokens or len(record.piece_s)
    record.input_tokens = record.input_tokens or record.sample.input_len
    if not record.piece_s and not record.error:
        record.error = "The answer has no text."


def _take(record: Record, chunk: dict[str, Any]) -> None:
    text = chunk_text(chunk)
    if text:
        record.piece_s.append(time.perf_counter())
        record.text += text
    usage = chunk.get("usage") or {}
    record.input_tokens = usage.get("prompt_tokens") or record.input_tokens
    record.output_tokens = usage.get("completion_tokens") or record.output_tokens


def _allow_files(connections: int) -> None:
    """Raise this process's limit of open files to what the load needs. Raises ConfigError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + FILES_SPARE
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise ConfigError(
        f"{connections} connections at once need {needed} open files, the limit is {hard}.",
        hint="Lower it with --max-concurrency.",
    )
