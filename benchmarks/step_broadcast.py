"""What more processes cost the host in a step: the broadcast of a plan, on a device of no time.

    python benchmarks/step_broadcast.py --ranks 4 --rows 32 --steps 2000

Two figures a plan: `added`, by which rank 0's own turn grows (encode once, one MAC and one write a
rank), and `lag`, from there until the slowest other rank has begun the step. All ranks share this
machine and its clock. A table for people, one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from statistics import median, quantiles

import numpy as np

from ranvier.cluster.broadcast import BroadcastRunner
from ranvier.cluster.detect import Place
from ranvier.cluster.follower import Follower, join
from ranvier.cluster.leader import Group
from ranvier.core.buckets import BucketSet
from ranvier.core.program import ProgramShape
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan

KEY = b"b" * 32
PAUSE_S = 0.002
"""Between steps, so that one does not queue behind the last."""


class Clocked:
    """A runner that does nothing but remember when each step began."""

    info = RunnerInfo(
        buckets=BucketSet(tokens=(1, 8, 32)), rows_max=32, block_tokens=32, block_count=2000,
        model_len_max=4096, vocab_size=32000, logprobs_max=20, edits_max=64,
    )  # fmt: skip

    def __init__(self) -> None:
        self.begun_ns: list[int] = []

    def dispatch(self, plan: StepPlan) -> object:
        self.begun_ns.append(time.monotonic_ns())
        return None

    def collect(self, handle: object) -> None:
        return None

    def close(self) -> None: ...


def decode_plan(rows: int, context: int = 1024) -> StepPlan:
    """A decode step of so many rows with drawn tokens."""
    blocks = list(range(1, 1 + context // 32))
    chunks = [Chunk(context - 1, [7], blocks) for _ in range(rows)]
    samples = [Sample(i, 0, temperature=0.7, top_p=0.9, uniform=0.3) for i in range(rows)]
    return StepPlan(ProgramShape("step", rows, rows), chunks, samples)


def follow(rank: int, count: int, port: int) -> None:
    """Another rank: its begin times go to stdout at the end."""
    runner = Clocked()
    follower = Follower(join(Place(rank, count, "127.0.0.1", port), KEY, 30), "", lambda e: None)
    follower.run(runner)  # type: ignore[arg-type]
    sys.stdout.buffer.write(np.array(runner.begun_ns, np.int64).tobytes())


def measure(ranks: int, rows: int, steps: int) -> dict[str, float]:
    """Microseconds, with so many ranks."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = [sys.executable, __file__, "--ranks", str(ranks), "--follow"]
    others = [
        subprocess.Popen([*own, f"{rank},{port}"], stdout=subprocess.PIPE)
        for rank in range(1, ranks)
    ]
    group = Group(Place(0, ranks, "127.0.0.1", port), KEY, lambda error: sys.exit(str(error)))
    group.gather(30)
    own_runner = Clocked()
    runner, plan = BroadcastRunner(own_runner, group), decode_plan(rows)  # type: ignore[arg-type]
    added_us, started_ns = [], []
    for _ in range(steps):
        started_ns.append(time.monotonic_ns())
        runner.dispatch(plan)
        added_us.append((time.monotonic_ns() - started_ns[-1]) / 1e3)
        time.sleep(PAUSE_S)
    group.close()
    begun = [np.frombuffer(p.communicate(timeout=30)[0], np.int64) for p in others]
    found = {"added_us_p50": median(added_us), "added_us_p99": quantiles(added_us, n=100)[98]}
    if begun:
        lag_us = (np.max(begun, axis=0) - np.array(started_ns)) / 1e3
        found["lag_us_p50"], found["lag_us_p99"] = (
            float(np.percentile(lag_us, q)) for q in (50, 99)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.follow:
        rank, port = map(int, given.follow.split(","))
        follow(rank, given.ranks, port)
        return
    one, many = (measure(count, given.rows, given.steps) for count in (1, given.ranks))
    for count, found in ((1, one), (given.ranks, many)):
        told = "  ".join(f"{name} {value:8.1f}" for name, value in found.items())
        print(f"{count} ranks  {told}")
    difference = many["added_us_p50"] - one["added_us_p50"]
    print(json.dumps({"rows": given.rows, "steps": given.steps, "ranks": given.ranks,
                      "overhead_ms_p50": round(difference / 1e3, 4), **many}))  # fmt: skip


if __name__ == "__main__":
    main()
