"""Starts of a server in fresh processes: from the command to the first /health that says 200.

A cold start finds no artifact and builds it; a warm one finds it. The files of the model are in
the system's page cache in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ranvier.bench.options import StartupOptions
from ranvier.client.http import Address, send
from ranvier.core.errors import ConfigError, InternalError, ServerError

__all__ = ["Start", "measure_startup"]

PERCENTILES = (10, 25, 50, 75, 90, 99)
READY_S_MAX = 3600.0
POLL_S = 0.01
STOP_S = 60.0
PHASE = re.compile(r"^ranvier: (.+?)\s+(\d+\.\d+) s$")
BUILDS = "build"
"""Phases with this word are the time of compiling (vLLM's "compilation time")."""

Command = Callable[[Path, int], list[str]]
"""The command of a server that keeps artifacts in a folder and listens on a port."""


@dataclass(frozen=True)
class Start:
    """One start: seconds to ready, and the phases that the server told."""

    total_s: float
    phases: dict[str, float]

    @property
    def compile_s(self) -> float:
        return sum(s for name, s in self.phases.items() if BUILDS in name)


def measure_startup(options: StartupOptions, command: Command) -> dict[str, Any]:
    """Start cold and warm, print vLLM's block and the table of phases, return the JSON."""
    with tempfile.TemporaryDirectory(prefix="ranvier-startup-") as folder:
        print("Measuring cold startup time...\n")
        cold = [_start(command, Path(folder) / str(i)) for i in range(options.num_iters_cold)]
        kept = Path(folder) / "kept"
        print("\nWarming up for warm startup measurement...\n")
        for _ in range(max(options.num_iters_warmup, 1)):
            _start(command, kept)
        print("\nMeasuring warm startup time...\n")
        warm = [_start(command, kept) for _ in range(options.num_iters_warm)]
    print("\n" + "=" * 60 + "\nSTARTUP TIME BENCHMARK RESULTS\n" + "=" * 60)
    result: dict[str, Any] = {}
    for name, starts in (("cold", cold), ("warm", warm)):
        if starts:
            result |= _tell(name, starts)
    print("=" * 60)
    if options.output_json is not None:
        try:
            Path(options.output_json).write_text(json.dumps(result, indent=4) + "\n")
        except OSError as error:
            raise ConfigError(f"{options.output_json}: {error}") from None
    return result


def _start(command: Command, artifacts: Path) -> Start:
    """Start a server, wait until it is ready, end it. Raises InternalError with its last words."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as told:
        start_s = time.perf_counter()
        process = subprocess.Popen(command(artifacts, port), stderr=told, stdout=told)
        try:
            is_ready = asyncio.run(_ready(process, Address("127.0.0.1", port)))
            total_s = time.perf_counter() - start_s
        finally:
            _stop(process)
        told.seek(0)
        lines = told.read().splitlines()
    if not is_ready:
        raise InternalError("The server did not start: " + " | ".join(lines[-5:]))
    print(f"  ready after {total_s:.2f} s")
    found = [match.groups() for line in lines if (match := PHASE.match(line))]
    return Start(total_s, {name: float(s) for name, s in found if name != "total"})


async def _ready(process: subprocess.Popen[bytes], address: Address) -> bool:
    until_s = time.perf_counter() + READY_S_MAX
    while process.poll() is None and time.perf_counter() < until_s:
        with contextlib.suppress(ServerError):
            async with send(address, "GET", "/health") as answer:
                if answer.status == 200:
                    return True
        await asyncio.sleep(POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tell(name: str, starts: list[Start]) -> dict[str, Any]:
    """Print one part of the block; its JSON fields."""
    print(f"\n{name.capitalize()} Startup Time Statistics:")
    result: dict[str, Any] = {}
    kinds = {"startup": ("Startup time", [s.total_s for s in starts])}
    kinds["compilation"] = ("Compilation time", [s.compile_s for s in starts])
    for key, (title, values) in kinds.items():
        print(f"Avg {title.lower()}: {np.mean(values):.2f} seconds")
        shares = {str(p): float(np.percentile(values, p)) for p in PERCENTILES}
        result[f"avg_{name}_{key}_time"] = float(np.mean(values))
        result[f"{name}_{key}_times"] = values
        result[f"{name}_{key}_percentiles"] = shares
    for key, (title, _) in kinds.items():
        print(f"{title} percentiles:")
        for share, value in result[f"{name}_{key}_percentiles"].items():
            print(f"  {share}%: {value:.2f} seconds")
    names = list(dict.fromkeys(phase for start in starts for phase in start.phases))
    phases = {phase: median(s.phases.get(phase, 0.0) for s in starts) for phase in names}
    print("Phases (median):")
    for phase, seconds in phases.items():
        print(f"  {phase:<32} {seconds:8.2f} s")
    result[f"{name}_phases"] = phases
    return result
