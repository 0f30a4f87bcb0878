"""The life of one rank's process: join, agree, load, serve, and leave with a code that tells.

`load` makes this rank's runner; it is given `agree`, by which it compares with the other ranks what
it finds on the way. Exit codes: 0 told to stop, 2 the ranks differ, 7 a rank is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from ranvier.cluster.broadcast import BroadcastRunner
from ranvier.cluster.detect import Place
from ranvier.cluster.follower import Follower, join
from ranvier.cluster.leader import Group
from ranvier.core.errors import ClusterError, RanvierError
from ranvier.core.step import Runner
from ranvier.link.message import Alive, Failure
from ranvier.link.service import EngineLink

__all__ = ["Agree", "Load", "follow", "lead", "leave"]

Agree = Callable[[str, dict[str, str]], None]
Load = Callable[[Agree], Runner]
LOG = logging.getLogger("ranvier.cluster")
READY = "ready"


def lead(
    place: Place, key: bytes, facts: dict[str, str], load: Load, link: EngineLink, timeout_s: float
) -> BroadcastRunner:
    """Rank 0: the runner of the whole cluster. The process ends when a rank is lost."""

    def end(error: ClusterError) -> None:
        link.send(Failure.of(error))
        leave(error.exit_code)

    group = Group(place, key, end, resolve_s=timeout_s)
    group.on_beat = lambda: link.send(Alive())
    group.gather(timeout_s)

    def agree(stage: str, values: dict[str, str]) -> None:
        group.agree(stage, values, timeout_s)

    agree("start", facts)
    runner = load(agree)
    agree(READY, {})
    return BroadcastRunner(runner, group)


def follow(
    place: Place,
    key: bytes,
    facts: dict[str, str],
    load: Load,
    timeout_s: float,
    *,
    flying_max: int = 1,
) -> NoReturn:
    """Any other rank: serve steps until the leader stops, then leave.

    `flying_max`: steps that may be on the device at once.
    """
    try:
        follower = _join(place, key, facts, timeout_s)
        runner = load(follower.agree)
        follower.agree(READY, {})
        print(f"ranvier: rank {place.rank} of {place.count} is ready", file=sys.stderr, flush=True)
        follower.run(runner, flying_max)
    except RanvierError as error:
        print(f"ranvier: error: {error}", file=sys.stderr)
        leave(error.exit_code)
    except Exception:
        LOG.exception("rank %d failed", place.rank)
        leave(1)
    leave(0)


def _join(place: Place, key: bytes, facts: dict[str, str], timeout_s: float) -> Follower:
    def end(error: ClusterError | None) -> None:
        leave(0 if error is None else error.exit_code)

    follower = Follower(join(place, key, timeout_s), socket.gethostname(), end)
    _outlive_one_signal()
    follower.agree("start", facts)
    return follower


def leave(code: int) -> NoReturn:
    """End the process now: nothing may wait for a rank that is dead."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _outlive_one_signal() -> None:
    """The leader drains after a first SIGTERM that all ranks get; only a second ends this one."""

    def second(*_: object) -> None:
        leave(ClusterError.exit_code)

    def first(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, second)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, first)
