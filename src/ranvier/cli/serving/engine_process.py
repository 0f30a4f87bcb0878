"""The engine's process, `python -m ranvier.cli.serving.engine_process SOCKET`; options on stdin.

The only process that imports jax. It tells the server about its start and lives exactly as long as
the connection: when that ends, for whatever reason, so does the process, and its children with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

from ranvier.cli.serving.log import configure_logging
from ranvier.cli.serving.order import EngineOrder
from ranvier.cli.serving.rank_load import load_rank
from ranvier.cli.serving.ranks import Agree, lead
from ranvier.cluster.agree import start_facts
from ranvier.core.errors import InternalError, RanvierError
from ranvier.core.step import Runner
from ranvier.engine.loop import Engine
from ranvier.link.message import Failure, Located, Phase, Ready
from ranvier.link.service import EngineLink, EngineService

__all__ = ["main"]

END_S = 2.0
"""Time to end by itself once the front is gone."""


def main(path: str) -> int:
    """Build or load, say so, then serve. The exit code is the error's."""
    faulthandler.register(signal.SIGUSR1)
    configure_logging(form="text", level="INFO")
    start_s = time.perf_counter()
    order = EngineOrder.load(sys.stdin.read())
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    finally:
        _forget(path)
    link = EngineLink(connection, _end_soon)
    try:
        engine = _open(order, link, start_s)
        EngineService(engine, link).run()
        engine.runner.close()
    except RanvierError as error:
        link.send(Failure.of(error))
        return error.exit_code
    except Exception as error:
        failure = InternalError(
            f"The engine failed to start: {type(error).__name__}: {error}",
            hint="This is a bug in Ranvier; the traceback is above.",
        )
        link.send(Failure.of(failure))
        raise
    return 0


def _open(order: EngineOrder, link: EngineLink, start_s: float) -> Engine:
    order.take_share()
    options, phases = order.options, _ToldPhases(link)

    folders: list[Path] = []

    def located(folder: Path) -> None:
        folders.append(folder)
        link.send(Located(str(folder)))

    def load(agree: Agree) -> Runner:
        return load_rank(order, agree, phases, located)

    if order.place is None:
        runner = load(lambda stage, values: None)
    else:
        facts = start_facts(options, order.place.count)
        runner = lead(order.place, order.key, facts, load, link, order.timeout_s)
    from ranvier.cli.wire import make_engine

    engine = make_engine(runner, options, folders[-1])
    info = engine.runner.info
    cache = {
        "block_size": str(info.block_tokens),
        "num_gpu_blocks": str(info.block_count),
        "enable_prefix_caching": str(options.enable_prefix_caching),
        "cache_dtype": options.dtype,
    }
    # What is alive now stays alive: later collections need not walk through it.
    gc.collect()
    gc.freeze()
    link.send(Ready(info, cache))
    return engine


class _ToldPhases(list[tuple[str, float]]):
    """Phases of the start, told to the front as they end."""

    def __init__(self, link: EngineLink) -> None:
        super().__init__()
        self._link = link

    def append(self, phase: tuple[str, float]) -> None:
        self._link.send(Phase(*phase))


def _forget(path: str) -> None:
    """Remove the socket and its folder: they have served, or the server is gone already."""
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def _end_soon() -> None:
    """Called when the connection has ended: nothing of this process group stays."""
    time.sleep(END_S)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
