"""Ranks on a Ray cluster: one actor a rank, whose only work is to run that rank's process.

Ray finds the machines and reserves their devices; steps never go through it. Rank 0 stays with the
command that was given. `ray` is imported by whoever makes RayRanks, so that nothing else needs it.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ranvier.core.errors import ClusterError, ConfigError

__all__ = ["RankProcess", "RayRanks", "open_ray"]

LOG = logging.getLogger("ranvier.cluster")
RESOURCES = {"neuron": "neuron_cores", "cuda": "GPU"}
"""Ray's names of what a rank's devices are; on other platforms a rank reserves a CPU."""


class RankProcess:
    """What an actor does: `run` a command to its end, its input given; the exit code."""

    def run(self, command: Sequence[str], given: bytes) -> int:
        return subprocess.run(list(command), input=given, check=False).returncode


def open_ray() -> Any:
    """The module, connected to the cluster that RAY_ADDRESS or this machine names.

    Raises ConfigError.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "distributed_executor_backend=ray needs Ray.", hint="pip install 'ranvier[ray]'"
        ) from None
    try:
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=True)
    except ConnectionError as error:
        raise ConfigError(
            f"There is no Ray cluster here: {' '.join(str(error).split())}",
            hint="Start one: ray start --head here, ray start --address=HERE:6379 elsewhere.",
        ) from None
    return ray


class RayRanks:
    """Ranks 1 .. count-1 as actors; `platform` and `devices` are what each rank reserves."""

    def __init__(
        self, ray: Any, count: int, *, platform: str, devices: int, timeout_s: float
    ) -> None:
        self._ray = ray
        self._count = count
        self._actors: list[Any] = []
        self.address: str = ray.util.get_node_ip_address()
        each = {RESOURCES[platform]: devices} if platform in RESOURCES else {"CPU": 1}
        # The first bundle is rank 0's, which is here; the others go elsewhere where they can.
        bundles = [{**each, f"node:{self.address}": 0.001}, *([each] * (count - 1))]
        self._group = ray.util.placement_group(bundles, strategy="SPREAD")
        try:
            ray.get(self._group.ready(), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            self.close()
            raise ClusterError(
                f"Ray has no room for {count} ranks of {each} after {timeout_s:.0f} s.",
                hint="`ray status` shows what the cluster has.",
            ) from None

    def start(
        self,
        command: Sequence[str],
        given: Callable[[int], bytes],
        on_end: Callable[[int, str], None],
    ) -> None:
        """Run every rank's command with its input; `on_end(rank, how)` when one ends."""
        ray, refs = self._ray, {}
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        remote = ray.remote(num_cpus=0)(RankProcess)
        for rank in range(1, self._count):
            where = strategy(placement_group=self._group, placement_group_bundle_index=rank)
            actor = remote.options(scheduling_strategy=where).remote()
            self._actors.append(actor)
            refs[actor.run.remote(list(command), given(rank))] = rank
        threading.Thread(
            target=self._watch, args=(refs, on_end), name="ray ranks", daemon=True
        ).start()

    def close(self) -> None:
        """End the actors and give back what was reserved. Their processes end with rank 0."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._ray.util.remove_placement_group(self._group)

    def _watch(self, refs: dict[Any, int], on_end: Callable[[int, str], None]) -> None:
        left = dict(refs)
        while left:
            done, _ = self._ray.wait(list(left), num_returns=1)
            for ref in done:
                rank = left.pop(ref)
                try:
                    how = f"code {self._ray.get(ref)}"
                except self._ray.exceptions.RayError as error:
                    how = type(error).__name__
                on_end(rank, how)
