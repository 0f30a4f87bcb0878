"""The engine: requests in, events out, one turn at a time.

The five verbs: admit, plan, dispatch, collect, commit. The overlapped order is the same functions
in another order. Every sequence of an admitted request ends in exactly one terminal event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

import msgspec

from ranvier.adapters.placing import Placing
from ranvier.adapters.registry import Adapters, Answer
from ranvier.core.clock import Clock, MonotonicClock
from ranvier.core.config import EngineConfig
from ranvier.core.errors import (
    CapacityError,
    DeviceError,
    ModelNotFound,
    RanvierError,
    RequestError,
    StateLost,
)
from ranvier.core.limits import LIMITS
from ranvier.core.request import EngineStats, Event, Request
from ranvier.core.step import Runner
from ranvier.core.structured import Matcher, MatcherSource
from ranvier.schedule.outline import Launch
from ranvier.schedule.scheduler import Scheduler
from ranvier.schedule.sequence import Sequence

__all__ = ["Engine"]

HOST_SAMPLES = 256
STEP_SAMPLES = 4096


class Engine:
    """One runner, one scheduler, and the loop between them; `adapters` where LoRA is enabled."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        clock: Clock | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.runner = runner
        self.config = config
        self.adapters = adapters
        self.adapter_answers: list[Answer] = []
        """Ends of loads, for who asked; taken by who tells them."""
        self.grammars: MatcherSource | None = None
        """Where structured outputs are served."""
        is_loaded = None if adapters is None else adapters.is_loaded
        self.scheduler = Scheduler(runner.info, config, is_loaded)
        self._clock = clock or MonotonicClock()
        self._placing = Placing(runner, self._clock)
        self._collected = 0
        self._awaits_load = False
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

    @property
    def can_sleep(self) -> bool:
        """Whether nothing happens before a request comes or an adapter is read."""
        is_resting = self._awaits_load and not (self.scheduler.running or self._flying)
        return not self._events and (is_resting or not self.has_work)

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
        matchers = _matchers(self.grammars, request)
        adapter = ""
        if request.adapter:
            if self.adapters is None:
                raise ModelNotFound("No adapters are served.", hint="Use enable_lora.")
            adapter = self.adapters.hold(request.adapter)
        now_s, count = self._clock.now_s(), request.params.sequence_count
        sequences = [Sequence(request, index, now_s, adapter) for index in range(count)]
        for sequence, matcher in zip(sequences, matchers, strict=False):
            sequence.matcher = matcher
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
        slots = self.scheduler.slots
        counts.adapter_hits, counts.adapter_misses = slots.hits, slots.misses
        if self.adapters is not None:
            counts.adapter_names = self.adapters.name_count
            counts.adapter_host_bytes = self.adapters.host_bytes
        counts.adapters_running = _adapters(self.scheduler.running)
        counts.adapters_waiting = _adapters(self.scheduler.waiting)
        return counts

    def take_stats(self) -> EngineStats:
        """stats() with the steps' token counts and the times of loads since the last call."""
        counts = msgspec.structs.replace(self.stats(), step_tokens=list(self._step_tokens))
        self._step_tokens.clear()
        if self.adapters is not None:
            counts.adapter_load_s, self.adapters.load_s = self.adapters.load_s, []
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
        is_whole = self.adapters is None or self._serve_adapters(self.adapters)
        if launch is None or not is_whole:
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
        self._collected += 1
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
            self._placing.clear()
            self._emit(self.scheduler.lose_cache(error.message))

    def _serve_adapters(self, adapters: Adapters) -> bool:
        """Ask for weights that the plan missed, move what it gave a slot, take what was read.

        False: the device lost its slots, and what was planned has ended.
        """
        slots, lost, is_whole = self.scheduler.slots, dict[str, RanvierError](), True
        for adapter in self.scheduler.wanted:
            adapters.want(adapter)
        adapters.expect(self.scheduler.upcoming)
        self._emit(_pin(self.scheduler, adapters))
        for slot, adapter in slots.take_moves():
            self._placing.begin(slot, adapters.weights(adapter), self._counts.steps)
        arrived = self._placing.turn(self._collected, is_busy=bool(self.scheduler.running))
        for adapter, error in arrived:
            slots.placing.discard(adapter)
            if error is not None:
                slots.forget(adapter)
                lost[adapter] = error
                is_whole = not isinstance(error, StateLost)
                self._fail([], error)
        loading = adapters.loading
        self.adapter_answers += adapters.turn(lost)
        self._awaits_load = 0 < loading == adapters.loading and not arrived
        for adapter, reason in lost.items():
            events = self.scheduler.fail_adapter(adapter, reason.message)
            self._emit(events if isinstance(reason, DeviceError) else _blame_adapter(events))
        return is_whole

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
            before = self._live[event.request_id]
            self._live[event.request_id] = [s for s in before if s.index != event.index]
            if not self._live[event.request_id]:
                del self._live[event.request_id]
                if self.adapters is not None and before[0].adapter:
                    self.adapters.release(before[0].adapter)


def _matchers(source: MatcherSource | None, request: Request) -> list[Matcher]:
    """One of each sequence's own; none where it may write what it likes. Raises RequestError."""
    asked = request.params.structured_outputs
    if asked is None:
        return []
    if source is None:
        raise RequestError("structured_outputs is not supported here.", param="structured_outputs")
    first = source(asked)
    return [first, *(first.fresh() for _ in range(request.params.sequence_count - 1))]


def _pin(scheduler: Scheduler, adapters: Adapters) -> list[Event]:
    """Give pinned adapters slots; ends of what waits for one when all are pinned."""
    slots, pins = scheduler.slots, adapters.pins
    slots.pinned = set(pins.digests)
    for adapter in list(pins.unplaced):
        if adapter in slots.slot_of:
            pins.unplaced.discard(adapter)
        elif not adapters.is_loaded(adapter):
            adapters.want(adapter)
        elif slots.room:
            slots.place(adapter)
    ends: list[Event] = []
    for sequence in list(scheduler.waiting) if pins.is_full else ():
        if sequence.adapter and sequence.adapter not in slots.pinned:
            reason = pins.full_reason(sequence.request.adapter)
            ends.append(scheduler.drop(sequence, "error", reason))
    return _blame_adapter(ends)


def _blame_adapter(events: list[Event]) -> list[Event]:
    """Ends that are no fault of the device."""
    for event in events:
        event.error_kind = "adapter"
    return events


def _adapters(sequences: Iterable[Sequence]) -> list[str]:
    """Their adapters' names, as many as are shown."""
    names = sorted({s.request.adapter for s in sequences if s.adapter})
    return names[: LIMITS.adapters_shown_max]
