"""`ranvier serve`: the engine's process first, the HTTP side while it loads, then both.

This process never imports jax. It owns the listening socket from the start, so that a port that is
in use costs no compile.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
import time
from pathlib import Path

from ranvier.cli.options.cluster import (
    ClusterOptions,
    check_cluster,
    cluster_key,
    find_place,
)
from ranvier.cli.options.front import FrontOptions, bind_socket, check_front
from ranvier.cli.options.settings import Options
from ranvier.cli.serving.fleet import Fleet
from ranvier.cli.serving.log import configure_logging
from ranvier.cli.serving.order import EngineOrder
from ranvier.cli.serving.shutdown import Shutdown
from ranvier.core.errors import ConfigError
from ranvier.link.message import Located, Phase, Ready

__all__ = ["serve"]


def serve(options: Options, front: FrontOptions, cluster: ClusterOptions, start_s: float) -> int:
    """Serve until SIGINT or SIGTERM; requests in flight get front.shutdown_timeout to finish.

    A rank other than 0 serves no HTTP: it follows rank 0 until that stops.
    """
    check_front(front)
    if front.per_request_spec_decode_metrics != "none" and not options.speculative_config:
        raise ConfigError(
            f"per_request_spec_decode_metrics is {front.per_request_spec_decode_metrics}, but "
            "nothing is guessed: there is no speculative_config.",
            hint="Give --speculative-config, or leave it out.",
        )
    configure_logging(form=front.log_format, level=front.logging_level)
    if cluster.distributed_executor_backend == "ray":
        from ranvier.cli.serving.ray_ranks import start_ranks

        order, ranks = start_ranks(options, cluster)
        try:
            return _serve(order, front, cluster, start_s)
        finally:
            if ranks is not None:
                ranks.close()
    return _serve(_order(options, cluster), front, cluster, start_s)


def _serve(order: EngineOrder, front: FrontOptions, cluster: ClusterOptions, start_s: float) -> int:
    if order.place is not None and not order.place.is_leader:
        from ranvier.cli.serving.rank_load import follow_leader

        follow_leader(order)
    listener = bind_socket(front)
    try:
        import uvloop

        return uvloop.run(_main(order, cluster.data_parallel_size, front, listener, start_s))
    except asyncio.CancelledError:
        return 130
    finally:
        listener.close()
        if front.uds:
            Path(front.uds).unlink(missing_ok=True)


def _order(options: Options, cluster: ClusterOptions) -> EngineOrder:
    """Where this process stands, checked before anything is built. Raises ConfigError."""
    place = find_place(cluster)
    check_cluster(options, cluster, place)
    if place is None:
        return EngineOrder(options)
    key = cluster_key(cluster, place)
    return EngineOrder(options, place, key, cluster.cluster_start_timeout)


async def _main(
    order: EngineOrder, replicas: int, front: FrontOptions, listener: socket.socket, start_s: float
) -> int:
    shutdown = Shutdown(asyncio.get_running_loop())  # before there is a process to leave behind
    fleet = Fleet(order, replicas)
    phases = _Phases(start_s)
    phases.end("imports and options")
    try:
        loading = asyncio.ensure_future(_load(fleet, front, phases))
        shutdown.on_first = loading.cancel
        ready, folder = await loading
        shutdown.on_first = None
        from ranvier.cli.serving.listen import Listener

        serving = Listener(front, order.options, fleet, ready, folder)
        return await serving.run(listener, shutdown, on_ready=phases.show)
    finally:
        await fleet.close(is_hurried=shutdown.insisted.is_set())


async def _load(fleet: Fleet, front: FrontOptions, phases: _Phases) -> tuple[Ready, Path]:
    """The engine; in its shadow the imports of the HTTP side."""
    found: list[Path] = []

    def hear(message: Located | Phase) -> None:
        if isinstance(message, Located):
            found.append(Path(message.folder))
        else:
            phases.add(message.name, message.seconds)

    connecting = asyncio.ensure_future(fleet.connect(hear, front.engine_stall_timeout))
    try:
        await asyncio.to_thread(importlib.import_module, "ranvier.cli.serving.listen")
        ready = await connecting
    finally:
        connecting.cancel()
    return ready, found[0]


class _Phases:
    """Names and lengths of the start's phases, one after the other."""

    def __init__(self, start_s: float) -> None:
        self._rows: list[tuple[str, float]] = []
        self._start_s = self._last_s = start_s

    def end(self, name: str) -> None:
        """A phase that began where the last one ended."""
        now_s = time.perf_counter()
        self._rows.append((name, now_s - self._last_s))
        self._last_s = now_s

    def add(self, name: str, seconds: float) -> None:
        """A phase that the engine measured; before the first lies the start of its process."""
        if len(self._rows) == 1:
            self.end("start engine process")
            before, between_s = self._rows.pop()
            self._rows.append((before, between_s - seconds))
        self._rows.append((name, seconds))
        self._last_s = time.perf_counter()

    def show(self) -> None:
        """Print them; `other` makes them sum to the wall time."""
        total_s = time.perf_counter() - self._start_s
        rest_s = total_s - sum(seconds for _, seconds in self._rows)
        for name, seconds in [*self._rows, ("other", rest_s), ("total", total_s)]:
            print(f"ranvier: {name:<24} {seconds:7.2f} s", file=sys.stderr)
