"""Gate: who may enter. Counts what is open, refuses what is too much, and closes for the drain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ranvier.core.errors import CapacityError

__all__ = ["Gate"]


class Gate:
    """One server's open requests."""

    def __init__(self) -> None:
        self.is_draining = False
        self.open_count = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place while a request is open. Raises CapacityError when it may not enter."""
        if self.is_draining:
            raise CapacityError("The server is shutting down.", hint="Ask another one.")
        self.open_count += 1
        try:
            yield
        finally:
            self.open_count -= 1
