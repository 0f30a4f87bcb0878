"""The engine: requests in, events out, one turn at a time.

The five verbs: admit, plan, dispatch, collect, commit. The overlapped order is the same functions
in another order. Every sequence of an admitted request ends in exactly one terminal event.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import msgspec

from ranvier.core.clock import Clock, MonotonicClock
from ranvier.core.config import EngineConfig
from ranvier.core.errors import CapacityError, DeviceError, RequestError, StateLost
from ranvier.core.request import EngineStats, Event, Request
from ranvier.core.step import Runner
from ranvier.schedule.outline import Launch
from ranvier.schedule.scheduler import Scheduler
from ranvier.schedule.sequence import Sequence

__all__ = ["Engine"]

HOST_SAMPLES = 256
STEP_SAMPLES = 4096


class Engine:
    """One runner, one scheduler, and the loop between them."""

    def __init__(self, runner: Runner, config: EngineConfig, clock: Clock | None = None) -> None:
        self.runner = runner
        self.config = config
        self.scheduler = Scheduler(runner.info, config)
        self._clock = clock or MonotonicClock()
        self._live: dict[str, list[Sequence]] = {}
        self._siblings: dict[str, list[Sequence]] = {}
        self._flying: deque[tuple[Launch, object, float]] = deque()
        self._freed_s = 0.0
        self._events: list[Event] = []
        self._counts = EngineStats()
        self._host_ms: deque[float] = deque(maxlen=HOST_SAMPLES)
        self._step_tokens: deque[int] = deque(maxlen=STEP_SAMPLES)

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._flying or self._events)

    def admit(self, request: Request) -> None:
        """Take a request. Raises RequestError, or CapacityError when the queue is full."""
        if request.request_id in self._live:
            raise RequestError(f"Request id {request.request_id!r} is in use.", param="request_id")
        self.scheduler.check(request)
        waiting = len(self.scheduler.waiting)
        if waiting >= self.config.requests_waiting_max:
            raise CapacityError(
                f"{waiting} requests are waiting, the limit is {self.config.requests_waiting_max}.",
                hint="Try again later.",
            )
        now_s, count = self._clock.now_s(), request.params.sequence_count
        sequences = [Sequence(request, index, now_s) for index in range(count)]
        self._live[request.request_id] = sequences
        self.scheduler.add(sequences[0])
        if count > 1:
            # The others wait until the first one's prompt is computed, and share its blocks.
            self._siblings[request.request_id] = sequences[1:]
        self._counts.prompt_tokens += len(request.prompt_token_ids)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its sequences, with "abort"; unknown ids are ignored."""
        for sequence in list(self._live.get(request_id, ())):
            if index is None or sequence.index == index:
                self._emit([self.scheduler.drop(sequence, "abort")])

    def turn(self) -> list[Event]:
        """One pass of the loop; returns the news since the last one."""
        if self.config.order == "overlapped":
            is_launched = self._launch()
            self._encode()
            # Nothing new in flight: only the result on the device can let the next plan go on.
            if len(self._flying) > 1 or (self._flying and not (is_launched and self._can_plan())):
                self._collect()
        else:
            self._launch()
            self._encode()
            if self._flying:
                self._collect()
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        """Counters since start and gauges of now."""
        counts, pool = self._counts, self.scheduler.pool
        counts.requests_running = len(self.scheduler.running)
        counts.requests_waiting = len(self.scheduler.waiting)
        counts.blocks_total, counts.blocks_free = pool.total, pool.free
        counts.prefix_queries, counts.prefix_hits = pool.queries, pool.hits
        features = self.scheduler.features
        counts.mm_queries, counts.mm_hits = features.queries, features.hits
        counts.preemptions = self.scheduler.preemptions
        speculation = self.scheduler.speculation
        counts.drafts, counts.draft_tokens = speculation.drafts, speculation.draft_tokens
        counts.accepted_tokens = sum(speculation.accepted)
        counts.accepted_per_position = list(speculation.accepted)
        counts.host_ms_p50 = median(self._host_ms) if self._host_ms else 0.0
        return counts

    def take_stats(self) -> EngineStats:
        """stats() with the token counts of the steps since the last call."""
        counts = msgspec.structs.replace(self.stats(), step_tokens=list(self._step_tokens))
        self._step_tokens.clear()
        return counts

    def has_request(self, request_id: str) -> bool:
        return request_id in self._live

    def reset_prefix_cache(self) -> None:
        self.scheduler.pool.forget_all()

    def reset_mm_cache(self) -> None:
        self.scheduler.features.forget_idle()

    def _can_plan(self) -> bool:
        return any(s.left for s in self.scheduler.running) or bool(self.scheduler.waiting)

    def _launch(self) -> bool:
        """Plan and dispatch one step; whether one is in flight that was not before."""
        start_s = self._clock.now_s()
        launch = self.scheduler.plan()
        if launch is None:
            return False
        for sequence, _, _ in launch.parts:
            if sequence.started_s is None:
                sequence.started_s = start_s
        planned_s = self._clock.now_s()
        self._host_ms.append((planned_s - start_s) * 1e3)
        try:
            handle = self.runner.dispatch(launch.plan)
        except DeviceError as error:
            self._fail(self.scheduler.fail(launch, error.message), error)
            return False
        self._flying.append((launch, handle, planned_s))
        self._counts.steps += 1
        self._counts.padding_tokens += launch.plan.program.tokens - launch.plan.token_count
        self._step_tokens.append(launch.plan.token_count)
        return True

    def _collect(self) -> None:
        launch, handle, planned_s = self._flying.popleft()
        try:
            result = self.runner.collect(handle)
        except DeviceError as error:
            self._fail(self.scheduler.fail(launch, error.message), error)
            return
        start_s = self._clock.now_s()
        if launch.is_decode:
            took_ms = (start_s - max(planned_s, self._freed_s)) * 1e3
            draft, tokens = launch.plan.program.draft, launch.plan.token_count
            self.scheduler.speculation.policy.measured(draft, tokens, took_ms)
        self._freed_s = start_s
        self._emit(self.scheduler.commit(launch, result))
        self._release_siblings(launch)
        if self._host_ms:
            self._host_ms[-1] += (self._clock.now_s() - start_s) * 1e3

    def _encode(self) -> None:
        """Encode the next picture that is waited for: one a turn, so that others decode on."""
        features = self.scheduler.features
        for key, image in list(features.pending.items())[:1]:
            try:
                self.runner.encode(image, features.rows(key))
                features.encoded(key)
            except DeviceError as error:
                self._fail(self.scheduler.fail_picture(key, error.message), error)

    def _fail(self, events: list[Event], error: DeviceError) -> None:
        """Tell who ended with a device's fault, and end all that lost their cache with it."""
        self._emit(events)
        if isinstance(error, StateLost):
            self._emit(self.scheduler.lose_cache(error.message))

    def _release_siblings(self, launch: Launch) -> None:
        for sequence, _, _ in launch.parts if self._siblings else ():
            is_ready = sequence.is_done or sequence.computed >= sequence.prompt_count
            if sequence.index == 0 and is_ready:
                self._queue_siblings(sequence.request.request_id)

    def _queue_siblings(self, request_id: str) -> None:
        for sibling in self._siblings.pop(request_id, ()):
            if not sibling.is_done:
                self.scheduler.add(sibling)

    def _emit(self, events: list[Event]) -> None:
        self._events += events
        for event in events:
            self._counts.generation_tokens += len(event.token_ids)
            if event.finish_reason is None:
                continue
            if event.index == 0:
                self._queue_siblings(event.request_id)
            left = [s for s in self._live[event.request_id] if s.index != event.index]
            self._live[event.request_id] = left
            if not left:
                del self._live[event.request_id]
