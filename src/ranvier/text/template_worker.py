"""Chat templates in a process of their own, with limits that the system keeps.

`python -m ranvier.text.template_worker` renders one template after another (worker/limited).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.text.template import ChatTemplate
from ranvier.worker.limited import Ended, LimitedProcess, Part, serve

__all__ = ["Job", "TemplateProcess", "main"]

MEMORY_BYTES_MAX = 2**30


class Job(msgspec.Struct):
    """One rendering."""

    source: str
    special_tokens: dict[str, str | None]
    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]


class _Done(msgspec.Struct):
    text: str = ""
    error: str | None = None
    param: str | None = None


class TemplateProcess:
    """The parent's side; blocks, one rendering at a time. A process that was ended is replaced."""

    def __init__(self, *, limit_s: float = LIMITS.template_render_s) -> None:
        self._process = LimitedProcess(__name__, limit_s=limit_s)

    def start(self) -> None:
        """Start the process ahead of its first use."""
        self._process.start()

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
        job = Job(source, special_tokens, messages, add_generation_prompt, variables)
        try:
            data = msgspec.msgpack.encode(job)
        except (TypeError, OverflowError, RecursionError) as error:
            raise RequestError(
                f"The messages hold no plain data: {error}.", param="messages"
            ) from None
        try:
            (answer,) = self._process.ask([data])
        except Ended as ended:
            told = "ended its process: too much memory or nesting"
            if ended.is_late:
                told = f"took longer than {self._process.limit_s:g} s and was ended"
            raise RequestError(f"The chat template {told}.", param="messages") from None
        done = msgspec.msgpack.decode(answer, type=_Done)
        if done.error is not None:
            raise RequestError(done.error, param=done.param)
        return done.text

    def close(self) -> None:
        """End the process."""
        self._process.close()


def main() -> None:
    """Render what stdin asks for until it ends."""
    serve(_answer, memory_bytes_max=MEMORY_BYTES_MAX)


def _answer(parts: list[bytearray]) -> Sequence[Part]:
    return [msgspec.msgpack.encode(_render(msgspec.msgpack.decode(parts[0], type=Job)))]


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


if __name__ == "__main__":
    main()
