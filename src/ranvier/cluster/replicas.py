"""ReplicaClient: several engines as one, to the server. A lost one takes its own requests alone.

Every request of a submission is routed on its own; their events meet in one stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from ranvier.cluster.router import Router
from ranvier.core.errors import InternalError, RanvierError, RequestError
from ranvier.core.request import EngineStats, Request
from ranvier.link.client import SocketClient, Stream

__all__ = ["ReplicaClient"]

LOG = logging.getLogger("ranvier.cluster")
LARGEST = ("host_ms_p50", "adapter_names")
"""Numbers of which the largest is shown; all others are sums."""
GAUGES = (
    "requests_running", "requests_waiting", "blocks_total", "blocks_free",
    "adapters_running", "adapters_waiting", "adapter_names", "adapter_host_bytes",
)  # fmt: skip
"""Of a replica that is lost these are nothing."""


class ReplicaClient:
    """An EngineClient over the clients of all replicas, in their order."""

    def __init__(self, clients: Sequence[SocketClient], router: Router) -> None:
        self._clients = list(clients)
        self._router = router
        self._owners: dict[str, int] = {}
        self._adapters: dict[str, tuple[str, bool]] = {}
        """What a successor has to load: name, path and whether it is pinned."""
        self._past = EngineStats()
        """Counters of replicas that have successors."""
        self.on_stats: Callable[[EngineStats], None] | None = None
        for client in self._clients:
            client.on_stats = self._heard

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Send each request to a replica. Raises InternalError when none is left.

        Raises RequestError for an id that is in use.
        """
        for request in requests:
            if request.request_id in self._owners:
                raise RequestError(
                    f"Request id {request.request_id!r} is in use.", param="request_id"
                )
        self._notice()
        shares: dict[int, list[Request]] = {}
        try:
            for request in requests:
                index = self._router.choose(request)
                self._owners[request.request_id] = index
                shares.setdefault(index, []).append(request)
        except LookupError:
            raise InternalError("Every replica is gone.", hint="Try again later.") from None
        stream = Stream(self, requests)
        try:
            for index, share in shares.items():
                self._clients[index].attach(stream, share)
        except RequestError:
            for request in requests:
                self.forget(request.request_id)
            raise
        return stream

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request or one of its sequences."""
        owner = self._owners.get(request_id)
        if owner is not None:
            self._clients[owner].cancel(request_id, index)

    def forget(self, request_id: str) -> None:
        """Cancel a request whose stream is no longer read."""
        owner = self._owners.pop(request_id, None)
        if owner is not None:
            self._router.end(owner, request_id)
            self._clients[owner].forget(request_id)

    def close_stream(self, request_id: str) -> None:
        """A request has ended; nothing more is expected of it."""
        owner = self._owners.pop(request_id, None)
        if owner is not None:
            self._router.end(owner, request_id)
            self._clients[owner].close_stream(request_id)

    def trouble(self) -> str | None:
        """Why no request can be served, or None while one replica can."""
        found = self._troubles()
        return None if len(found) < len(self._clients) else "; ".join(found.values())

    def degraded(self) -> str | None:
        """Which replicas are lost, while others serve."""
        return "; ".join(self._troubles().values()) or None

    def stats(self) -> EngineStats:
        """The numbers of all replicas together; a lost one's counters stay as they were last."""
        return self._sum(None)

    def reset_prefix_cache(self) -> None:
        self._router.forget()
        for client in self._clients:
            client.reset_prefix_cache()

    async def load_adapter(
        self, name: str, path: str, *, is_inplace: bool = False, is_pinned: bool | None = None
    ) -> None:
        """Load it into every replica that lives: into all of them, or into none."""
        living = self._living()
        if not living:
            raise InternalError("Every replica is gone.", hint="Try again later.")
        how: dict[str, Any] = {"is_inplace": is_inplace, "is_pinned": is_pinned}
        loads = [client.load_adapter(name, path, **how) for client in living]
        ends = await asyncio.gather(*loads, return_exceptions=True)
        errors = [end for end in ends if isinstance(end, BaseException)]
        if not errors:
            was_pinned = self._adapters.get(name, ("", False))[1]
            self._adapters[name] = (path, was_pinned if is_pinned is None else is_pinned)
            return
        if not is_inplace:  # what an adapter in place was before is not known any more
            done = [c for c, end in zip(living, ends, strict=True) if end is None]
            undone = [client.unload_adapter(name) for client in done]
            await asyncio.gather(*undone, return_exceptions=True)
        raise errors[0]

    async def unload_adapter(self, name: str) -> None:
        """Unload it from every replica that lives. Raises ModelNotFound."""
        self._adapters.pop(name, None)
        ends = [client.unload_adapter(name) for client in self._living()]
        for end in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(end, BaseException):
                raise end

    async def replace(self, index: int, client: SocketClient) -> None:
        """Give a lost replica a successor, asked once it has the adapters of the others."""
        loaded: dict[str, tuple[str, bool]] = {}
        while missing := {n: a for n, a in self._adapters.items() if loaded.get(n) != a}:
            for name, (path, is_pinned) in missing.items():
                loaded[name] = path, is_pinned
                try:
                    await client.load_adapter(name, path, is_inplace=True, is_pinned=is_pinned)
                except RanvierError as error:
                    LOG.error("Replica %d has no adapter %s: %s", index + 1, name, error.message)
        for name in loaded.keys() - self._adapters.keys():
            with contextlib.suppress(RanvierError):  # it could not be loaded either
                await client.unload_adapter(name)
        self._past = _added(self._past, self._clients[index].stats(), without=GAUGES)
        client.on_stats = self._heard
        self._clients[index] = client
        self._router.renew(index)

    def _living(self) -> list[SocketClient]:
        return [client for client in self._clients if client.error is None]

    async def close(self) -> None:
        """End every replica; open streams end with an error."""
        for client in self._clients:
            await client.close()

    def _troubles(self) -> dict[int, str]:
        count = len(self._clients)
        return {
            index: f"Replica {index + 1} of {count}: {trouble}"
            for index, client in enumerate(self._clients)
            if (trouble := client.trouble()) is not None
        }

    def _notice(self) -> None:
        """Tell the router who is gone; one that is only stuck gets nothing until it moves."""
        troubles = self._troubles()
        for index in range(len(self._clients)):
            self._router.mark(index, is_lost=index in troubles)

    def _heard(self, news: EngineStats) -> None:
        if self.on_stats is not None:
            self.on_stats(self._sum(news))

    def _sum(self, news: EngineStats | None) -> EngineStats:
        """`news`: of the replica that has just been heard; its steps and loads are told once."""
        total = self._past
        for client in self._clients:
            without = () if client.error is None else GAUGES
            total = _added(total, client.stats(), without=without)
        news = news or EngineStats()
        return msgspec.structs.replace(
            total, step_tokens=news.step_tokens, adapter_load_s=news.adapter_load_s
        )


def _added(total: EngineStats, stats: EngineStats, *, without: Sequence[str]) -> EngineStats:
    names = [name for name in total.__struct_fields__ if name not in without]
    values = {name: _joined(name, getattr(total, name), getattr(stats, name)) for name in names}
    return msgspec.structs.replace(total, **values)


def _joined(name: str, total: Any, value: Any) -> Any:
    """A number of several replicas; lists are numbers by position, but for those of adapters."""
    if name in ("adapters_running", "adapters_waiting"):
        return sorted({*total, *value})
    if isinstance(value, list):
        return [a + b for a, b in zip_longest(total, value, fillvalue=0)]
    return max(total, value) if name in LARGEST else total + value
