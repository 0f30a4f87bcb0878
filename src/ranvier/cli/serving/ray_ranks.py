"""`--distributed-executor-backend ray`: the ranks of one model on a Ray cluster."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace

from ranvier.cli.options.cluster import ClusterOptions, check_cluster, device_count
from ranvier.cli.options.settings import Options, say
from ranvier.cli.serving.order import EngineOrder
from ranvier.cluster.detect import Place
from ranvier.cluster.ray import RayRanks, open_ray
from ranvier.core.errors import ConfigError

__all__ = ["start_ranks"]

COMMAND = ("-m", "ranvier.cli.serving.follower_process")


def start_ranks(options: Options, cluster: ClusterOptions) -> tuple[EngineOrder, RayRanks | None]:
    """Rank 0's order, and the other ranks on their way. Raises ConfigError, ClusterError."""
    count = cluster.nnodes or 1
    for name in ("node_rank", "master_addr"):
        if getattr(cluster, name) is not None:
            raise ConfigError(
                f"{name} is given, and Ray numbers the ranks.", hint=f"Leave {name} out."
            )
    probe = None if count == 1 else Place(0, count, "", cluster.master_port, "Ray")
    check_cluster(options, cluster, probe)
    if probe is None:
        return EngineOrder(options), None
    named = options.target or options.device
    ranks = RayRanks(
        open_ray(),
        count,
        platform=named.split("-")[0],
        devices=device_count(options) // count,
        timeout_s=cluster.cluster_start_timeout,
    )
    order = EngineOrder(
        options,
        replace(probe, address=ranks.address),
        secrets.token_bytes(32),
        cluster.cluster_start_timeout,
    )

    def given(rank: int) -> bytes:
        assert order.place is not None
        return replace(order, place=replace(order.place, rank=rank)).dump()

    ranks.start(
        [sys.executable, *COMMAND],
        given,
        lambda rank, how: say(f"rank {rank} on the Ray cluster has ended: {how}"),
    )
    return order, ranks
