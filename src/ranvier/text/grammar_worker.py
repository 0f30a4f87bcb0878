"""Grammars read in a process of their own first, with limits that the system keeps.

`python -m ranvier.text.grammar_worker` reads one after another (worker/limited). What passes costs
an engine no more than it cost here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.structured import StructuredOutputsParams
from ranvier.worker.limited import Ended, LimitedProcess, Part, serve

__all__ = ["GrammarProcess", "main"]

MEMORY_BYTES_MAX = 2**28


class GrammarProcess:
    """The parent's side; blocks, one grammar at a time. A process that was ended is replaced."""

    def __init__(self, *, limit_s: float = LIMITS.grammar_read_s) -> None:
        self._process = LimitedProcess(__name__, limit_s=limit_s)

    def check(self, params: StructuredOutputsParams) -> None:
        """Raise RequestError for a grammar that is wrong, or takes too much to read."""
        try:
            data = msgspec.msgpack.encode(params)
            (answer,) = self._process.ask([data])
        except (TypeError, OverflowError, RecursionError):
            raise _wrong("it holds no plain data.") from None
        except Ended as ended:
            told = "took too much memory, or is nested too deeply"
            if ended.is_late:
                told = f"took longer than {self._process.limit_s:g} s"
            raise _wrong(f"reading the grammar {told}.") from None
        if answer:
            raise RequestError(answer.decode(), param="structured_outputs")

    def close(self) -> None:
        """End the process."""
        self._process.close()


def main() -> None:
    """Read what stdin brings until it ends."""
    from ranvier.text.grammar import check_grammar

    def answer(parts: list[bytearray]) -> Sequence[Part]:
        try:
            check_grammar(msgspec.msgpack.decode(parts[0], type=StructuredOutputsParams))
        except RequestError as error:
            return [error.message.encode()]
        except (MemoryError, RecursionError) as error:
            kind = type(error).__name__
            return [f"structured_outputs: the grammar needs too much ({kind}).".encode()]
        return [b""]

    serve(answer, memory_bytes_max=MEMORY_BYTES_MAX)


def _wrong(reason: str) -> RequestError:
    return RequestError(f"structured_outputs: {reason}", param="structured_outputs")


if __name__ == "__main__":
    main()
