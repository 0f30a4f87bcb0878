"""The part of Ray that RayRanks uses: actors are threads, placement is remembered."""

from __future__ import annotations

import threading
import types
from concurrent.futures import FIRST_COMPLETED, Future, wait


class GetTimeoutError(Exception):
    pass


class RayError(Exception):
    pass


class FakeRay:
    """A cluster with `cpus` free; `log` is what was asked of it."""

    def __init__(self, cpus=8):
        self.cpus, self.log = cpus, []
        self.exceptions = types.SimpleNamespace(GetTimeoutError=GetTimeoutError, RayError=RayError)
        strategies = types.SimpleNamespace(PlacementGroupSchedulingStrategy=lambda **given: given)
        self.util = types.SimpleNamespace(
            get_node_ip_address=lambda: "127.0.0.1",
            placement_group=self._group,
            remove_placement_group=lambda group: self.log.append(("removed", group)),
            scheduling_strategies=strategies,
        )

    def _group(self, bundles, strategy):
        self.log.append(("group", bundles, strategy))
        is_there = len(bundles) <= self.cpus
        return types.SimpleNamespace(bundles=bundles, ready=lambda: is_there)

    def get(self, ref, timeout=None):
        if ref is False:
            raise GetTimeoutError
        return ref.result() if isinstance(ref, Future) else ref

    def wait(self, refs, num_returns):
        done, _ = wait(refs, return_when=FIRST_COMPLETED)
        return list(done), [ref for ref in refs if ref not in done]

    def kill(self, actor):
        self.log.append(("killed", actor.where["placement_group_bundle_index"]))

    def remote(self, **resources):
        def decorate(kind):
            def options(scheduling_strategy):
                return types.SimpleNamespace(remote=lambda: _Actor(kind(), scheduling_strategy))

            return types.SimpleNamespace(options=options)

        return decorate


class _Actor:
    def __init__(self, work, where):
        self.where = where

        def run(*given):
            future = Future()

            def finish():
                try:
                    future.set_result(work.run(*given))
                except OSError as error:
                    future.set_exception(RayError(str(error)))

            threading.Thread(target=finish, daemon=True).start()
            return future

        self.run = types.SimpleNamespace(remote=run)
