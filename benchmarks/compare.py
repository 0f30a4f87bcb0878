"""Compare Ranvier with other engines, or with itself, on this machine: paired runs, one model.

    python benchmarks/compare.py llama vllm transformers [--workloads decode1,decode32] [--pairs 5]
    python benchmarks/compare.py llama --weights q8_0        # both on one file, at its own width
    python benchmarks/compare.py ranvier vllm --ours int8    # Ranvier quantised, the peer in bf16

Each engine is a process that loads once, in an environment of its own which is made when missing.
Runs alternate (Ranvier, peer, Ranvier, peer, ...) within seconds, and the engine that waits is
stopped by a signal, so that it cannot use the processor. Prints every pair, the median of the
ratios with their spread, decode's share of the measured read bandwidth, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from environment import PEERS, Peer, cache_folder, ensure  # noqa: E402
from protocol import WORKLOADS, Workload  # noqa: E402
from weights import FORMS, Weights  # noqa: E402

from ranvier.cli.quantisation import DENSE  # noqa: E402
from ranvier.weights.quantise.scheme import SCHEMES  # noqa: E402

SETTLE_S = 0.2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Side:
    """One engine of a comparison: its script, what it is given, what its decode step reads."""

    label: str
    python: Path
    script: str
    model: Path
    step_bytes: int
    own: tuple[str, ...] = ()
    """Further arguments of the script."""


class Worker:
    """One engine's process group; stopped by SIGSTOP unless it is running a workload."""

    def __init__(self, side: Side, threads: int) -> None:
        self.side = side
        python, script = side.python, HERE / "peers" / side.script
        command = [str(python), str(script), str(side.model), str(threads), *side.own]
        library = python.parent.parent / "lib" / "libiomp5.so"
        preload = {"LD_PRELOAD": str(library)} if library.is_file() else {}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **preload},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "-v" in sys.argv else subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.about = self._read()
        self.pause()

    def run(self, workload: Workload, seed: int) -> float:
        """Tokens per second of one run."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        order = json.dumps({"workload": workload.name, "seed": seed})
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self.pause()
        return float(answer["tokens"] / answer["seconds"])

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def cpu_s(self) -> float:
        """Processor seconds of the process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"compare: {self.side.label} has ended; run again with -v to see why.")
        found: dict[str, Any] = json.loads(line)
        return found

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)


@dataclass(frozen=True)
class Comparison:
    """One workload on Ranvier and one peer: tokens per second of every run, pair by pair."""

    workload: str
    peer: str
    ours: list[float]
    theirs: list[float]
    idle_cpu_s: float

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended too
    given = arguments()
    weights = Weights.of(given.model, cache_folder())
    bandwidth = read_bandwidth(given.threads)
    print(f"{machine()}, {given.threads} threads, {given.model}")
    print(f"read bandwidth {bandwidth:.1f} GB/s (C, sum of 1 GiB, best of 12)\n")
    found = []
    for name in given.peers:
        found += against(PEERS[name], given, weights, bandwidth)
    again = read_bandwidth(given.threads)
    result = {
        "machine": machine(),
        "threads": given.threads,
        "model": given.model,
        "weights": given.weights,
        "ours": given.ours,
        "date": time.strftime("%Y-%m-%d"),
        "read_gb_s": [bandwidth, again],
        "comparisons": found,
    }
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "peers", nargs="+", choices=list(PEERS), metavar="PEER", help=", ".join(PEERS)
    )
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs (%(default)s)")
    parser.add_argument("--warmups", type=int, default=2, help="runs before them (%(default)s)")
    parser.add_argument("--model", default="smollm2-135m", help=".gguf file or demo name")
    parser.add_argument(
        "--weights",
        choices=list(FORMS),
        default="bf16",
        help="format of the GGUF file for Ranvier and for peers that read one (%(default)s); "
        "other peers get the same model in bf16",
    )
    parser.add_argument(
        "--ours",
        choices=[*SCHEMES, DENSE],
        metavar="SCHEME",
        help="Ranvier's quantization; default: the width of its file",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-v", action="store_true", help="show what the engines say")
    given = parser.parse_args()
    given.workloads = [name.strip() for name in given.workloads.split(",")]
    unknown = set(given.workloads) - set(WORKLOADS)
    if unknown or given.pairs < 1 or given.threads < 1:
        parser.error(f"unknown workloads {sorted(unknown)}; known: {', '.join(WORKLOADS)}")
    for peer in (PEERS[name] for name in given.peers):
        if peer.forms and given.weights not in peer.forms:
            known = " or ".join(peer.forms)
            parser.error(f"{peer.name} does not read {given.weights}: give --weights {known}")
        fitting = [name for name in WORKLOADS if WORKLOADS[name].batch <= peer.batch_max]
        if not set(given.workloads) <= set(fitting):
            parser.error(f"{peer.name} can run --workloads {','.join(fitting)}")
    return given


def against(
    peer: Peer, given: argparse.Namespace, weights: Weights, bandwidth: float
) -> list[dict[str, Any]]:
    """Every workload against one peer."""
    sides = (our_side(given, weights), their_side(peer, given, weights))
    workers: list[Worker] = []
    try:
        for side in sides:
            workers.append(Worker(side, given.threads))
            about = workers[-1].about
            print(f"== {side.label}: loaded in {about['load_s']:.1f} s; {about}", flush=True)
        rows = []
        for name in given.workloads:
            comparison = pairs(WORKLOADS[name], peer, workers, given)
            rows.append(tell(comparison, sides, weights.kv_bytes, bandwidth))
        return rows
    finally:
        for worker in workers:
            worker.close()


def our_side(given: argparse.Namespace, weights: Weights) -> Side:
    """Ranvier: in bf16 from a folder, else from the GGUF file that its peers may read too."""
    form, scheme = given.weights, given.ours
    model = weights.folder() if form == "bf16" else weights.gguf(form)
    label = f"Ranvier {form if scheme is None else 'bf16' if scheme == DENSE else scheme}"
    read = weights.step_bytes(form, scheme)
    own = () if scheme is None else (scheme,)
    return Side(label, Path(sys.executable), "ranvier_worker.py", model, read, own)


def their_side(peer: Peer, given: argparse.Namespace, weights: Weights) -> Side:
    """A peer: on the GGUF file if it reads one, else in bf16."""
    python, form = ensure(peer), given.weights if peer.forms else "bf16"
    model = weights.gguf(form) if peer.forms else weights.folder()
    label = f"{peer.title} {form}"
    return Side(label, python, peer.worker, model, weights.step_bytes(form))


def pairs(
    workload: Workload, peer: Peer, workers: list[Worker], given: argparse.Namespace
) -> Comparison:
    """Alternating runs of both workers, the same prompts in each pair."""
    for i in range(given.warmups):
        for worker in workers:
            worker.run(workload, -100 - i)
    rates: list[list[float]] = [[], []]
    idle_s = 0.0
    for seed in range(given.pairs):
        for own, worker in enumerate(workers):
            other = workers[1 - own]
            before_s = other.cpu_s()
            rates[own].append(worker.run(workload, seed))
            idle_s = max(idle_s, other.cpu_s() - before_s)
        ours, theirs = rates[0][-1], rates[1][-1]
        print(
            f"   {workload.name:<12} pair {seed + 1}: {workers[0].side.label} {ours:8.1f}, "
            f"{workers[1].side.label} {theirs:8.1f} tok/s, ratio {ours / theirs:.2f}",
            flush=True,
        )
    return Comparison(workload.name, peer.name, rates[0], rates[1], idle_s)


def tell(
    found: Comparison, sides: tuple[Side, Side], kv_bytes: int, bandwidth: float
) -> dict[str, Any]:
    """Print a comparison's summary; its part of the JSON line."""
    workload, ratios = WORKLOADS[found.workload], found.ratios
    ours, theirs = median(found.ours), median(found.theirs)
    line = (
        f"   {found.workload:<12} median: {sides[0].label} {ours:.1f}, {sides[1].label} "
        f"{theirs:.1f} tok/s; ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    shares = {}
    if workload.kind == "decode":
        shares = {
            f"{name}_bandwidth_share": share(workload, rate, side.step_bytes, kv_bytes, bandwidth)
            for name, rate, side in zip(("ours", "theirs"), (ours, theirs), sides, strict=True)
        }
        told = ", ".join(f"{value:.0%}" for value in shares.values())
        line += f"; share of read bandwidth {told}"
    print(f"{line}; processor time of the waiting engine {found.idle_cpu_s:.2f} s\n", flush=True)
    return {
        **asdict(found),
        "ratio_median": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        **shares,
    }


def share(
    workload: Workload, tokens_per_s: float, step_bytes: int, kv_bytes: int, bandwidth: float
) -> float:
    """Bytes that a decode step must read, over its time, over the measured bandwidth."""
    context = workload.prompt + 1 + workload.new / 2
    read = step_bytes + workload.batch * context * kv_bytes
    return read * (tokens_per_s / workload.batch) / (bandwidth * 1e9)


def read_bandwidth(threads: int) -> float:
    """GB/s of plain reads by `threads` threads, by a small C program."""
    binary = cache_folder() / "read_bandwidth"
    binary.parent.mkdir(parents=True, exist_ok=True)
    source = HERE / "read_bandwidth.c"
    if not binary.is_file() or binary.stat().st_mtime < source.stat().st_mtime:
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run(["cc", *flags, str(source), "-o", str(binary)], check=True)
    command = [str(binary), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def machine() -> str:
    """Processor and cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
