"""What every rank does between the first agreement and the first step: devices, artifact, weights.

Alone it is the same, without anybody to agree with. Imports jax.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from ranvier.cli.options.cluster import device_count
from ranvier.cli.serving.order import EngineOrder
from ranvier.cli.serving.ranks import Agree, follow
from ranvier.cluster.agree import start_facts
from ranvier.core.errors import ConfigError
from ranvier.core.step import Runner

__all__ = ["follow_leader", "load_rank"]

Phases = list[tuple[str, float]]


def load_rank(
    order: EngineOrder, agree: Agree, phases: Phases, located: Callable[[Path], None]
) -> Runner:
    """A warm runner of this rank; `located` is told the artifact's folder."""
    start_s, place = time.perf_counter(), order.place
    order.tell_neuron()
    from ranvier.artifact.read import read_manifest
    from ranvier.cli.wire import ensure_artifact, open_runner, set_flags

    if place is not None:
        set_flags()
        from ranvier.runtime.distributed import join

        where = f"{place.address}:{place.port + 1}"
        local = device_count(order.options) // place.count
        join(where, place.count, place.rank, local_devices=local, timeout_s=order.timeout_s)
        phases.append(("join ranks", time.perf_counter() - start_s))
        start_s = time.perf_counter()
    folder = ensure_artifact(order.options)
    phases.append(("find or build artifact", time.perf_counter() - start_s))
    located(folder)
    key = msgspec.to_builtins(read_manifest(folder).key)
    if place is not None and key["target"] == "cpu" and order.options.async_scheduling:
        raise ConfigError(
            f"async_scheduling with {place.count} ranks on the CPU: collectives between processes "
            "take one step at a time there.",
            hint="Leave async_scheduling out.",
        )
    agree("artifact", {f"artifact {name}": str(value) for name, value in key.items()})
    return open_runner(folder, order.options, phases)


def follow_leader(order: EngineOrder) -> NoReturn:
    """This process as any rank but 0, to its end."""
    assert order.place is not None
    facts = start_facts(order.options, order.place.count)

    def load(agree: Agree) -> Runner:
        return load_rank(order, agree, [], lambda folder: None)

    flying_max = 2 if order.options.async_scheduling else 1
    follow(order.place, order.key, facts, load, order.timeout_s, flying_max=flying_max)
