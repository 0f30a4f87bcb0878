"""What compare.py and a worker say to each other: workloads, and one JSON line each way.

Runs in every peer's environment, so it needs the standard library alone. A worker loads its engine
once, says {"ready": ...}, then answers {"workload": name, "seed": n} with {"seconds": s,
"tokens": n} of that run. Whatever a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["WORKLOADS", "Engine", "Timer", "Workload", "prompts", "work"]

IDS = range(100, 40_000)
"""Ordinary tokens of every model that is compared."""


@dataclass(frozen=True)
class Workload:
    """What one run does, exactly.

    decode: `batch` sequences with prompts of `prompt` tokens; the clock runs from the moment when
    each has its first token through `new` further steps, of one token a sequence: no prefill in it.
    throughput: `batch` prompts at once, `new` tokens each, ends ignored; all of it; prompt and
    output tokens are counted.
    prefill: one prompt, from its submission to its first token; prompt tokens are counted.
    All greedy; every run has random prompts of its own, so no prefix is cached.
    """

    name: str
    kind: str
    batch: int
    prompt: int
    new: int

    @property
    def steps_of_decode(self) -> int:
        return self.new if self.kind == "decode" else 0


WORKLOADS = {
    w.name: w
    for w in (
        Workload("decode1", "decode", batch=1, prompt=32, new=128),
        Workload("decode32", "decode", batch=32, prompt=64, new=32),
        Workload("throughput", "throughput", batch=32, prompt=128, new=128),
        Workload("prefill1024", "prefill", batch=1, prompt=1024, new=1),
        Workload("prefill512", "prefill", batch=1, prompt=512, new=1),
    )
}
CONTEXT_MAX = 2048
BATCH_MAX = 32


class Engine(Protocol):
    """One engine, loaded. `run` returns (seconds, tokens) of a workload."""

    def run(self, workload: Workload, seed: int) -> tuple[float, int]: ...
    def describe(self) -> dict[str, object]: ...


class Timer:
    """Seconds since `start`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


def prompts(workload: Workload, seed: int) -> list[list[int]]:
    """The prompts of a run: the same for every engine."""
    rng = random.Random(f"{workload.name} {seed}")
    return [rng.choices(IDS, k=workload.prompt) for _ in range(workload.batch)]


def work(load: Callable[..., Engine]) -> None:
    """Be a worker: `load(model, threads, ...)` from the arguments, then answer lines to their end.

    Every engine gets as many cores as threads. Further arguments are the engine's own.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    model, threads = sys.argv[1], int(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    timer = Timer()
    engine = load(model, threads, *sys.argv[3:])
    ready = {"ready": True, "load_s": timer.seconds, **engine.describe()}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        seconds, tokens = engine.run(WORKLOADS[order["workload"]], order["seed"])
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)
