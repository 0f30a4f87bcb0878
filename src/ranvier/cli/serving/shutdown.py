"""Shutdown: what SIGINT and SIGTERM mean. The first one asks, the second one insists."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

__all__ = ["Shutdown"]


class Shutdown:
    """Counts signals. `on_first` is called at the first, where the start can be broken off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.on_first: Callable[[], object] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.asked.is_set():
            self.insisted.set()
        self.asked.set()
        if self.on_first is not None:
            self.on_first()
