"""neuronx-cc by its command line: one process a program, a bounded pool, failures explained.

Knows nothing of artifacts or of jax. Not run with a real compiler by us: the command line is the
documented one (SDK 2.32), and tests run it against a small program that keeps its contract.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ranvier.targets.neuron.compile_cost import worker_bytes
from ranvier.targets.neuron.errors import explain

__all__ = [
    "Failure",
    "Job",
    "command",
    "compile_all",
    "compiler_version",
    "find_compiler",
    "worker_count",
]

COMPILER = "neuronx-cc"
PROGRAM_S_MAX = 4 * 3600
"""A compiler that runs longer is ended."""
LOG_CHARS = 4000
OPTIMIZATION = {"prefill": 1, "decode": 2}
"""As NxD Inference does: context encoding -O1, token generation -O2."""


@dataclass(frozen=True)
class Job:
    """One program: its HLO proto, where its NEFF goes, and what kind it is."""

    name: str
    hlo: Path
    neff: Path
    family: str


@dataclass(frozen=True)
class Failure:
    """One program that was not compiled: why, and the end of the compiler's log."""

    name: str
    reason: str
    log: str


def find_compiler() -> str | None:
    """The compiler on PATH, or None."""
    return shutil.which(COMPILER)


def compiler_version(compiler: str) -> str:
    """What `neuronx-cc --version` says, on one line."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return " ".join((done.stdout or done.stderr).split())


def command(compiler: str, job: Job, compiler_target: str, logical_cores: int) -> list[str]:
    """The command line of one program."""
    return [
        compiler, "compile", str(job.hlo), "--framework", "XLA", "--target", compiler_target,
        "--output", str(job.neff), "--model-type", "transformer",
        "--optlevel", str(OPTIMIZATION.get(job.family, 2)), "--auto-cast", "none",
        "--logical-nc-config", str(logical_cores),
    ]  # fmt: skip


def worker_count(jobs: int, layers: int) -> int:
    """Compilers at once: as many as memory and cores (two each) allow, one at least."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = min(int(0.8 * pages) // worker_bytes(layers), (os.cpu_count() or 2) // 2)
    return max(1, min(jobs, room))


def compile_all(
    jobs: Iterable[Job],
    command_of: Callable[[Job], list[str]],
    workers: int,
    done: Callable[[Job], None],
) -> list[Failure]:
    """Compile every job; `done` is called from this thread after each success.

    One failure does not stop the others: each is an hour's work that a second run need not repeat.
    """
    failures = []
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_compile, job, command_of(job)): job for job in jobs}
        for future in as_completed(running):
            failure = future.result()
            if failure is None:
                done(running[future])
            else:
                failures.append(failure)
    return failures


def _compile(job: Job, words: list[str]) -> Failure | None:
    """Run the compiler in a folder of its own; the NEFF appears whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="ranvier-neff-") as folder:
        made = Path(folder) / job.neff.name
        words = [str(made) if word == str(job.neff) else word for word in words]
        with (Path(folder) / "log").open("w+b") as log:
            code = _run(words, folder, log.fileno())
            log.seek(0)
            text = log.read().decode(errors="replace")
        if code == 0 and made.is_file() and made.stat().st_size:
            partial = job.neff.with_suffix(".partial")
            shutil.copyfile(made, partial)
            os.replace(partial, job.neff)
            return None
    return Failure(job.name, _reason(code, text), text[-LOG_CHARS:])


def _run(words: list[str], folder: str, log: int) -> int | None:
    """The exit status, None after PROGRAM_S_MAX; the whole process group ends with it."""
    process = subprocess.Popen(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        return process.wait(PROGRAM_S_MAX)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(code: int | None, text: str) -> str:
    known = explain(text if code != -signal.SIGKILL else f"{text}\nKilled")
    if known:
        return " ".join(known)
    if code is None:
        return f"it ran longer than {PROGRAM_S_MAX} s and was ended"
    if code == 0:
        return "it ended well but wrote no NEFF"
    return f"it ended with status {code} and no known code"
