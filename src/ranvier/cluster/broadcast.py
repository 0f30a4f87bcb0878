"""BroadcastRunner: the runner of rank 0, whose every verb happens at all ranks, in one order.

The engine above it knows nothing of ranks. A step that fails here may have succeeded there: after
that no rank's state can be trusted, and the group ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from ranvier.cluster.adapter import parts
from ranvier.cluster.leader import Group
from ranvier.cluster.message import Dispatch, Encode, FillOn, FillSlot, MessageFault
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import DeviceError
from ranvier.core.media import ImageItem
from ranvier.core.step import Runner, RunnerInfo, StepPlan, StepResult

__all__ = ["BroadcastRunner"]


class BroadcastRunner:
    """`runner` is this rank's own. Every verb raises ClusterError once the group has ended."""

    def __init__(self, runner: Runner, group: Group) -> None:
        self._runner = runner
        self._group = group
        self._steps = 0

    @property
    def info(self) -> RunnerInfo:
        return self._runner.info

    def dispatch(self, plan: StepPlan) -> object:
        """Send the plan to every rank, then launch it here."""
        self._steps += 1
        self._group.broadcast(Dispatch(self._steps, plan))
        try:
            return self._runner.dispatch(plan)
        except DeviceError as error:
            raise self._group.fail(f"a step failed at rank 0: {error.message}") from error

    def collect(self, handle: object) -> StepResult:
        """Wait for a step here; the others read their own results."""
        try:
            result = self._runner.collect(handle)
        except DeviceError as error:
            raise self._group.fail(f"a step failed at rank 0: {error.message}") from error
        self._group.check()
        return result

    def encode(self, image: ImageItem, rows: list[int]) -> None:
        """Encode a picture at every rank. Raises DeviceError for one too large to be sent."""
        try:
            self._group.broadcast(Encode(image, rows))
        except MessageFault as fault:
            raise DeviceError(f"The picture can't be sent to other ranks: {fault}") from fault
        try:
            self._runner.encode(image, rows)
        except DeviceError as error:
            raise self._group.fail(f"a picture failed at rank 0: {error.message}") from error

    def place_adapter(self, slot: int, adapter: AdapterWeights | None) -> Iterator[None]:
        """Send an adapter to every rank, a part a `next`, then move it everywhere in step."""
        for part in parts(adapter) if adapter is not None else ():
            self._group.broadcast(part)
            yield
        self._group.broadcast(FillSlot(slot, adapter is None))
        pieces = self._runner.place_adapter(slot, adapter)
        while True:
            self._group.broadcast(FillOn())
            try:
                next(pieces)
            except StopIteration:
                return
            except DeviceError as error:
                raise self._group.fail(f"an adapter failed at rank 0: {error.message}") from error
            yield

    def close(self) -> None:
        """End every rank."""
        self._group.close()
        self._runner.close()
