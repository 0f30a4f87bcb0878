"""Fleet: the engine processes of one server, one or several replicas, as one client.

The first replica builds what is missing; the others start once it knows the artifact, and load
beside it. One that is lost is started again, after a pause that doubles while it does not last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from ranvier.cli.options.settings import Options
from ranvier.cli.serving.host import EngineHost
from ranvier.cli.serving.order import EngineOrder, Share
from ranvier.cluster.replicas import ReplicaClient
from ranvier.cluster.router import Router
from ranvier.core.errors import ClusterError, InternalError, RanvierError
from ranvier.link.client import SocketClient
from ranvier.link.message import Located, Phase, Ready

__all__ = ["Fleet"]

LOG = logging.getLogger("ranvier.cluster")
PAUSE_S, PAUSE_MAX_S = 1.0, 60.0
"""Before a lost replica is started again, at first and at most."""
Hear = Callable[[Located | Phase], None]


class Fleet:
    """`order` is that of one engine; with `replicas` above 1 each gets its share."""

    def __init__(self, order: EngineOrder, replicas: int = 1) -> None:
        self._orders = [order]
        if replicas > 1:
            order = replace(order, options=_divided(order.options, replicas))
            self._orders = [replace(order, share=Share(i, replicas)) for i in range(replicas)]
        self._hosts = [EngineHost(self._orders[0])]
        self._is_rank = order.place is not None
        self._keepers: list[asyncio.Task[None]] = []
        self.client: SocketClient | ReplicaClient | None = None

    async def connect(self, hear: Hear, stall_s: float) -> Ready:
        """Wait until every engine is ready. Raises what made a start fail."""
        located = asyncio.Event()

        def first(message: Located | Phase) -> None:
            if isinstance(message, Located):
                located.set()
            hear(message)

        connecting = [asyncio.create_task(self._hosts[0].connect(first, stall_s))]
        try:
            if len(self._orders) > 1:
                waiting = asyncio.ensure_future(located.wait())
                await asyncio.wait([waiting, *connecting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if located.is_set():
                    connecting += [self._start(order, stall_s) for order in self._orders[1:]]
            ready, *_ = await asyncio.gather(*connecting)
        except InternalError as error:
            if self._is_rank:  # other ranks stop too, and a supervisor may start all again
                raise ClusterError(error.message, hint=error.hint) from None
            raise
        finally:
            for task in connecting:
                task.cancel()
        self._meet(ready, stall_s)
        return ready

    async def lost(self) -> RanvierError:
        """Wait until this server can never serve again, where a supervisor should restart it."""
        if not self._is_rank:
            await asyncio.Event().wait()
        assert isinstance(self.client, SocketClient)
        await self.client.lost.wait()
        assert self.client.error is not None
        return self.client.error

    async def close(self, *, is_hurried: bool = False) -> None:
        """End every process. Safe to call at any time."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(host.close(is_hurried=is_hurried) for host in self._hosts))

    def _start(self, order: EngineOrder, stall_s: float) -> asyncio.Task[Ready]:
        host = EngineHost(order)
        self._hosts.append(host)
        return asyncio.create_task(host.connect(lambda message: None, stall_s))

    def _meet(self, ready: Ready, stall_s: float) -> None:
        clients = [host.client for host in self._hosts if host.client is not None]
        if len(clients) == 1:
            self.client = clients[0]
            return
        info = ready.info
        router = Router(len(clients), block_tokens=info.block_tokens, block_count=info.block_count)
        self.client = both = ReplicaClient(clients, router)
        keeps = (self._keep(index, both, stall_s) for index in range(len(clients)))
        self._keepers = [asyncio.create_task(keep) for keep in keeps]

    async def _keep(self, index: int, fleet: ReplicaClient, stall_s: float) -> None:
        """Start a replica again whenever it is lost."""
        loop, pause_s = asyncio.get_running_loop(), PAUSE_S
        while True:
            client, since_s = self._hosts[index].client, loop.time()
            if client is not None:
                await client.lost.wait()
            pause_s = PAUSE_S if loop.time() - since_s > PAUSE_MAX_S else pause_s
            LOG.error(
                "Replica %d of %d is lost; it is started again in %.0f s.",
                index + 1, len(self._hosts), pause_s,
            )  # fmt: skip
            await self._hosts[index].close(is_hurried=True)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            host = self._hosts[index] = EngineHost(self._orders[index])
            try:
                await host.connect(lambda message: None, stall_s)
            except RanvierError as error:
                LOG.error("Replica %d did not start: %s", index + 1, error.message)
                continue
            assert host.client is not None
            await fleet.replace(index, host.client)
            LOG.info("Replica %d of %d serves again.", index + 1, len(self._hosts))


def _divided(options: Options, replicas: int) -> Options:
    """Options of one replica: a share of the host's memory is one of all replicas together."""
    share = options.gpu_memory_utilization
    named = options.target or options.device
    if share is None or named not in ("auto", "cpu"):
        return options
    return replace(options, gpu_memory_utilization=share / replicas)
