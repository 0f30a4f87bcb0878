"""LimitedProcess: one job after another in a process that the system ends when it takes too much.

Before each job the timer of the kernel is set: when it fires, the process is ended by SIGALRM's
default action, inside whatever C function or loop it may be. Memory is bounded by RLIMIT_AS. When
its input ends, the process ends. Knows nothing of what a job is: lists of bytes go both ways.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Answer", "Ended", "LimitedProcess", "Part", "serve"]

HEAD = struct.Struct(">dI")
SIZE = struct.Struct(">I")

Part = bytes | bytearray | memoryview
Answer = Callable[[list[bytearray]], Sequence[Part]]


class Ended(Exception):
    """The process ended over a job: `is_late` by its time, else by its memory or a fault."""

    def __init__(self, is_late: bool) -> None:
        super().__init__()
        self.is_late = is_late


class LimitedProcess:
    """The parent's side of `module`, whose main calls serve; blocks, one job at a time.

    A process that was ended is replaced at the next job.
    """

    def __init__(self, module: str, *, limit_s: float) -> None:
        self.limit_s = limit_s
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process ahead of its first use."""
        with self._lock:
            self._running()

    def ask(self, job: Sequence[Part]) -> list[bytearray]:
        """The answer to a job. Raises Ended."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                _write(process.stdin, job, self.limit_s)
            read = _read(process.stdout)
            if read is None:
                raise Ended(self._forget() == -signal.SIGALRM)
            return read[1]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._forget()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _forget(self) -> int:
        """Reap the ended process; how it ended."""
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()


def serve(answer: Answer, *, memory_bytes_max: int) -> None:
    """Answer what stdin asks for until it ends; memory counts beyond what is in use now."""
    most = _mapped_bytes() + memory_bytes_max
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while (job := _read(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_REAL, job[0])
        found = answer(job[1])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(sys.stdout.buffer, found, 0)


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _read(stream: IO[bytes]) -> tuple[float, list[bytearray]] | None:
    """The limit of a message and its parts; None where the stream ends."""
    head = _exactly(stream, HEAD.size)
    if head is None:
        return None
    limit_s, count = HEAD.unpack(head)
    sizes = _exactly(stream, SIZE.size * count)
    if sizes is None:
        return None
    parts = []
    for (size,) in SIZE.iter_unpack(sizes):
        part = _exactly(stream, size)
        if part is None:
            return None
        parts.append(part)
    return limit_s, parts


def _exactly(stream: IO[bytes], size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            return None
        done += count
    return data


def _write(stream: IO[bytes], parts: Sequence[Part], limit_s: float) -> None:
    stream.write(HEAD.pack(limit_s, len(parts)))
    stream.write(b"".join(SIZE.pack(len(part)) for part in parts))
    for part in parts:
        stream.write(part)
    stream.flush()
