"""Chat templates in a process of their own, with limits that the system keeps.

`python -m ranvier.text.template_worker` renders one template after another. Before each the timer
of the kernel is set: when it fires, the process is ended by SIGALRM's default action, inside
whatever C function or loop it may be. Memory is bounded by RLIMIT_AS. When its input ends, it ends.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.text.template import ChatTemplate

__all__ = ["Job", "TemplateProcess", "main"]

HEAD = struct.Struct(">I")
MEMORY_BYTES_MAX = 2**30


class Job(msgspec.Struct):
    """One rendering."""

    source: str
    special_tokens: dict[str, str | None]
    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]
    limit_s: float


class _Done(msgspec.Struct):
    text: str = ""
    error: str | None = None
    param: str | None = None


class TemplateProcess:
    """The parent's side; blocks, one rendering at a time. A process that was ended is replaced."""

    def __init__(self, *, limit_s: float = LIMITS.template_render_s) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process ahead of its first use."""
        with self._lock:
            self._running()

    def render(
        self,
        source: str,
        special_tokens: dict[str, str | None],
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> str:
        """The prompt text of a conversation. Raises RequestError, also for a template too slow."""
        job = Job(source, special_tokens, messages, add_generation_prompt, variables, self._limit_s)
        try:
            data = msgspec.msgpack.encode(job)
        except (TypeError, OverflowError, RecursionError) as error:
            raise RequestError(
                f"The messages hold no plain data: {error}.", param="messages"
            ) from None
        with self._lock:
            answer = self._ask(data)
        done = msgspec.msgpack.decode(answer, type=_Done)
        if done.error is not None:
            raise RequestError(done.error, param=done.param)
        return done.text

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._forget()

    def _ask(self, data: bytes) -> bytes:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            _write(process.stdin, data)
        answer = _read(process.stdout)
        if answer is None:
            code = self._forget()
            if code == -signal.SIGALRM:
                told = f"took longer than {self._limit_s:g} s and was ended"
            else:
                told = "ended its process: too much memory or nesting"
            raise RequestError(f"The chat template {told}.", param="messages")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ranvier.text.template_worker"],
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


def main() -> None:
    """Render what stdin asks for until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while (data := _read(sys.stdin.buffer)) is not None:
        job = msgspec.msgpack.decode(data, type=Job)
        signal.setitimer(signal.ITIMER_REAL, job.limit_s)
        answer = msgspec.msgpack.encode(_render(job))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(sys.stdout.buffer, answer)


def _render(job: Job) -> _Done:
    try:
        template = ChatTemplate(job.source, job.special_tokens)
        return _Done(
            template.render(
                job.messages,
                add_generation_prompt=job.add_generation_prompt,
                variables=job.variables,
            )
        )
    except RequestError as error:
        return _Done(error=error.message, param=error.param)
    except (MemoryError, RecursionError) as error:
        kind = type(error).__name__
        return _Done(error=f"The chat template needs too much ({kind}).", param="messages")


def _read(stream: IO[bytes]) -> bytes | None:
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    size: int = HEAD.unpack(head)[0]
    data = stream.read(size)
    return data if len(data) == size else None


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(HEAD.pack(len(data)) + data)
    stream.flush()


if __name__ == "__main__":
    main()
