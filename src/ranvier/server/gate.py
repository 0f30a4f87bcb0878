"""Gate: who may enter. Counts what is open, refuses what is too much, and closes for the drain.

What waits is counted here, at once, not in the engine a turn later: requests beyond the rows of the
batch, and the prompt tokens of requests that have no token yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ranvier.core.errors import CapacityError, RequestError

__all__ = ["Entry", "Gate"]

RETRY_S = 1


class Entry:
    """One open HTTP request."""

    def __init__(self, gate: Gate, sequences: int, tokens: int) -> None:
        self._gate = gate
        self.sequences = sequences
        self._tokens = tokens

    def started(self) -> None:
        """It has its first token: its prompt waits no longer."""
        self._gate.tokens_waiting -= self._tokens
        self._tokens = 0


class Gate:
    """One server's open requests. `rows` is how many sequences run at once."""

    def __init__(self, *, rows: int, requests_max: int, tokens_max: int | None) -> None:
        self.is_draining = False
        self.open_count = 0
        self.tokens_waiting = 0
        self.rejections: Counter[str] = Counter()
        self._sequences = 0
        self._rows = rows
        self._requests_max = requests_max
        self._tokens_max = tokens_max
        self._names: set[str] = set()

    @contextmanager
    def enter(self, sequences: int, tokens: int, name: str | None = None) -> Iterator[Entry]:
        """Hold a place while a request is open.

        Raises CapacityError when it may not enter, RequestError when its own name is in use.
        """
        self._check(sequences, tokens)
        if name is not None:
            if name in self._names:
                raise RequestError(f"Request id {name!r} is in use.", param="request_id")
            self._names.add(name)
        entry = Entry(self, sequences, tokens)
        self.open_count += 1
        self._sequences += sequences
        self.tokens_waiting += tokens
        try:
            yield entry
        finally:
            entry.started()
            self.open_count -= 1
            self._sequences -= sequences
            self._names.discard(name or "")

    def _check(self, sequences: int, tokens: int) -> None:
        if self.is_draining:
            raise CapacityError("The server is shutting down.", hint="Ask another one.")
        waiting = self._sequences + sequences - self._rows
        if self._sequences and waiting > self._requests_max:
            self._reject("max_num_queued_reqs", f"{waiting} requests", self._requests_max)
        waiting = self.tokens_waiting + tokens
        if self._tokens_max is not None and self.tokens_waiting and waiting > self._tokens_max:
            self._reject("max_num_queued_tokens", f"{waiting} prompt tokens", self._tokens_max)

    def _reject(self, reason: str, what: str, limit: int) -> None:
        self.rejections[reason] += 1
        raise CapacityError(
            f"{what} would wait; the limit is {limit} ({reason}).",
            retry_after_s=RETRY_S,
            hint="Try again later.",
        )
