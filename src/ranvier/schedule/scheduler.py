"""The scheduler: which tokens of which sequences the next step takes, and what its result means.

Pure decisions over host state; no device, no clock of its own. `plan` launches, `commit` takes a
result; between them sequences may be added or cancelled. Plans are committed in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ranvier.core.config import EngineConfig
from ranvier.core.program import Family
from ranvier.core.request import Event, FinishReason, Request, TokenLogprobs, check_fits
from ranvier.core.step import RunnerInfo, Sample, StepResult
from ranvier.media.features import FeatureRows
from ranvier.media.fit import check_media
from ranvier.schedule.blocks import BlockPool, block_count
from ranvier.schedule.outline import Launch, Outline, Row
from ranvier.schedule.sequence import Sequence
from ranvier.schedule.slots import AdapterSlots, Turnstile, upcoming
from ranvier.speculate.speculation import Speculation

__all__ = ["Scheduler"]

_REFUSED = (
    "structured_outputs: no token is left that both the grammar and the request's other fields "
    "allow, or the grammar takes too much work at this point."
)


class Scheduler:
    """Continuous batching with chunked prefill, prefix caching and preemption by recompute.

    Order within a step: running sequences in order of arrival, then waiting ones, first come first
    served within a priority; those whose adapter has no slot yet are passed by. When blocks run out
    the youngest running sequence gives its up. `is_loaded` says whether an adapter's weights are in
    host memory; `wanted` are those that the last plan missed, `upcoming` those needed next.
    Where programs are not ragged, prefill and decode take turns when both have work.
    """

    def __init__(
        self, info: RunnerInfo, config: EngineConfig, is_loaded: Callable[[str], bool] | None = None
    ) -> None:
        self.info = info
        self.slots = AdapterSlots(
            info.adapter_slots, config.adapter_eviction, config.adapter_decay_uses
        )
        self.wanted: list[str] = []
        self.upcoming: list[str] = []
        self._is_loaded = is_loaded or (lambda adapter: False)
        self.pool = BlockPool(
            info.block_count, info.block_tokens, is_caching=config.enable_prefix_caching
        )
        self.features = FeatureRows(info.vision)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preemptions = 0
        self._tokens_max = min(config.max_num_batched_tokens, info.tokens_max)
        self._last: Family = "decode"
        self.speculation = Speculation(info, config.speculation)

    def check(self, request: Request) -> None:
        """Raise RequestError for what can never run here."""
        check_fits(request, self.info)
        check_media(request, self.info, self._tokens_max)

    def add(self, sequence: Sequence) -> None:
        """Queue a checked sequence behind those of its priority."""
        if sequence.request.media is not None and self.info.vision is not None:
            sequence.show(sequence.request.media, self.info.vision)
        at = len(self.waiting)
        while at and self.waiting[at - 1].request.priority > sequence.request.priority:
            at -= 1
        self.waiting.insert(at, sequence)

    def drop(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> Event:
        """End a sequence now; its blocks are free at once."""
        self._leave(sequence)
        return _event(sequence, [], reason, error=error)

    def plan(self) -> Launch | None:
        """Choose the next step, or None when nothing can run."""
        self.wanted = []
        self.speculation.plan(self.running)
        for family in self._families():
            launch = self._plan(family)
            if launch is not None:
                self._last = family
                return launch
        return None

    def _families(self) -> tuple[Family, ...]:
        """Which kinds of step to try, in this order."""
        if self.info.is_ragged:
            return ("step",)
        return ("decode", "prefill") if self._last == "prefill" else ("prefill", "decode")

    def _plan(self, family: Family) -> Launch | None:
        speculation, rows = self.speculation, len(self.running) + len(self.waiting)
        outline = Outline(
            self.info, family, self._tokens_max, speculation.count,
            is_resting=speculation.rests(min(rows, self.info.rows_max)),
        )  # fmt: skip
        for sequence in list(self.running):
            if sequence in self.running:
                self._extend(outline, sequence)
        self._start_waiting(outline)
        return outline.launch()

    def _start_waiting(self, outline: Outline) -> None:
        turnstile = Turnstile(self.slots, self._is_loaded)
        for sequence in list(self.waiting):
            if not outline.has_room or len(self.running) >= self.info.rows_max:
                break
            # A preempted sequence whose token is still on the device waits for it.
            if sequence.awaited or not outline.can_start(sequence):
                break
            if turnstile.lets(sequence.adapter) and not self._start(outline, sequence):
                break
        self.wanted += turnstile.wanted
        self.upcoming = upcoming(self.slots, (sequence.adapter for sequence in self.waiting))

    def commit(self, launch: Launch, result: StepResult) -> list[Event]:
        """Take a step's result: append tokens and drafts that stood, finish, remember blocks."""
        is_taken_in = launch.plan.program.lookahead > 0
        for (sequence, epoch, computed), chunk in zip(
            launch.parts, launch.plan.chunks, strict=True
        ):
            if sequence.epoch == epoch and not sequence.is_done:
                sequence.computed = computed
                if is_taken_in and chunk.start <= sequence.absorbed:
                    sequence.absorbed = computed
        events = []
        for i, row in enumerate(launch.rows):
            if row is None:
                continue
            if row.scored >= 0:
                _score(row, _logprobs(launch.plan.samples[i], result, i))
            elif not row.sequence.is_done:
                events += self._append(row, i, launch, result)
        for sequence, epoch, _ in launch.parts:
            if sequence.epoch == epoch and not sequence.is_done:
                _remember(self.pool, sequence)
                self.features.settle(sequence.pictures, sequence.computed)
                is_whole = sequence.computed >= len(sequence.tokens)
                if sequence.request.params.max_tokens == 0 and is_whole:
                    events.append(self.drop(sequence, "length"))
        return events

    def fail(self, launch: Launch, error: str) -> list[Event]:
        """End the sequences of a step that the device refused."""
        hit = {id(s): s for s, _, _ in launch.parts if not s.is_done}
        return [self.drop(sequence, "error", error) for sequence in hit.values()]

    def lose_cache(self, error: str) -> list[Event]:
        """End what runs and forget every prefix; what waits has nothing on the device."""
        self.pool.forget_all()
        events = [self.drop(sequence, "error", error) for sequence in list(self.running)]
        self.features.forget_idle()
        self.slots.forget_all()
        return events

    def fail_adapter(self, adapter: str, error: str) -> list[Event]:
        """End every sequence with an adapter that cannot be had."""
        hit = [s for s in (*self.running, *self.waiting) if s.adapter == adapter]
        return [self.drop(sequence, "error", error) for sequence in hit]

    def fail_picture(self, key: bytes, error: str) -> list[Event]:
        """End the sequence that a picture was to be encoded for; others ask for it again."""
        holder = next(s for s in self.running if s.pictures and key in s.pictures.rows)
        return [self.drop(holder, "error", error)]

    def _start(self, outline: Outline, sequence: Sequence) -> bool:
        if not sequence.is_scoring_prompt:
            known = sequence.known()
            sequence.blocks, sequence.digest = self.pool.lookup(known, sequence.salt)
            sequence.remembered = len(sequence.blocks)
            sequence.planned = sequence.computed = sequence.remembered * self.info.block_tokens
            sequence.absorbed = sequence.planned
            sequence.cached_tokens = max(sequence.cached_tokens, sequence.planned)
        has_rows = self.features.enter(sequence.pictures, sequence.planned)
        count = self._grant(outline, sequence) if has_rows else 0
        if not (has_rows and self._reserve(sequence, count)):
            self.features.leave(sequence.pictures)
            self.pool.release(sequence.blocks)
            sequence.restart()
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.slot = self.slots.enter(sequence.adapter)
        if count:
            outline.add(sequence, count)
        return True

    def _grant(self, outline: Outline, sequence: Sequence) -> int:
        count = outline.grant(sequence)
        return self.features.grant(sequence.pictures, sequence.planned, count)

    def _extend(self, outline: Outline, sequence: Sequence) -> None:
        count = 0 if self.speculation.waits(sequence) else self._grant(outline, sequence)
        if sequence.drafts and count > 1 and not self._reserve(sequence, count):
            count = 1  # no block is taken from another for the sake of a guess
        while count and not self._reserve(sequence, count):
            victim = self.running[-1]
            outline.remove(victim)
            self._preempt(victim)
            if victim is sequence:
                return
        if count:
            outline.add(sequence, count)

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        needed, ahead = sequence.planned + count, 0
        if self.info.buckets.has_drafter:  # what it writes ahead is worth free blocks, no others
            ahead = min(self.info.buckets.lookahead, self.info.model_len_max - needed)
        for end in (needed + ahead, needed):
            missing = block_count(end, self.info.block_tokens) - len(sequence.blocks)
            blocks = self.pool.take(max(missing, 0))
            if blocks is not None:
                sequence.blocks.extend(blocks)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._stop(sequence)
        sequence.restart()
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        sequence.is_done = True
        if sequence in self.running:
            self._stop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.blocks = []

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        self.features.leave(sequence.pictures)
        self.slots.leave(sequence.adapter)

    def _append(self, row: Row, i: int, launch: Launch, result: StepResult) -> list[Event]:
        """The tokens of a sequence: one, and one more for each draft that stood."""
        sequence, part = row.sequence, launch.plan.samples[i].chunk
        is_whole = launch.parts[part][1] == sequence.epoch
        sequence.awaited -= 1
        sequence.awaited_sample = -1 if not sequence.awaited else sequence.awaited_sample
        sequence.drafts, events, stood = [], [], 0
        while stood < len(row.drafts) and row.drafts[stood] == result.token_ids[i + stood]:
            stood += 1
        if row.drafts:
            self.speculation.verified(sequence, len(row.drafts), stood)
        for j in range(1 + stood):
            if j and is_whole:
                sequence.planned = sequence.computed = launch.parts[part][2] + j
                sequence.absorbed += launch.plan.program.lookahead > 0
            events.append(self._take(sequence, i + j, launch, result))
            if sequence.is_done:
                break
        guesses = result.drafts
        sequence.proposed = [] if guesses is None or not is_whole else guesses[part].tolist()
        return events

    def _take(self, sequence: Sequence, i: int, launch: Launch, result: StepResult) -> Event:
        """Append one sampled token."""
        token = int(result.token_ids[i])
        sequence.append(token)
        if sequence.is_refused:
            return _refused(self.drop(sequence, "error", _REFUSED))
        entry = _logprobs(launch.plan.samples[i], result, i)
        logprobs = None if launch.plan.samples[i].logprobs < 0 else [entry]
        reason, stop = _end(sequence, token, self.info.model_len_max)
        if reason is None:
            return _event(sequence, [token], None, logprobs=logprobs)
        _remember(self.pool, sequence)
        self._leave(sequence)
        return _event(sequence, [token], reason, logprobs=logprobs, stop_reason=stop)


def _end(
    sequence: Sequence, token: int, model_len_max: int
) -> tuple[FinishReason | None, int | None]:
    """Why a sequence ends with this token, and the stop token of the request that it is."""
    p = sequence.request.params
    if sequence.output_count >= p.min_tokens:
        if token in (p.stop_token_ids or ()):
            return "stop", token
        if not p.ignore_eos and token in sequence.request.end_token_ids:
            return "stop", None
    is_full = len(sequence.tokens) >= model_len_max
    if is_full or (p.max_tokens is not None and sequence.output_count >= p.max_tokens):
        return "length", None
    return None, None


def _refused(event: Event) -> Event:
    """An end that is the request's own fault."""
    event.error_kind = "request"
    return event


def _remember(pool: BlockPool, sequence: Sequence) -> None:
    """Enter the blocks that are full and computed into the cache."""
    size = pool.block_tokens
    while (sequence.remembered + 1) * size <= sequence.computed:
        start = sequence.remembered * size
        tokens = tuple(sequence.known(start, start + size))
        block = sequence.blocks[sequence.remembered]
        sequence.digest = pool.remember(block, sequence.digest, tokens, sequence.salt)
        sequence.remembered += 1


def _score(row: Row, entry: TokenLogprobs) -> None:
    found = row.sequence.prompt_logprobs
    # After preemption the prompt is computed again: each of its tokens is scored once.
    if found is not None and not row.sequence.is_done and len(found) == row.scored:
        found.append(entry)


def _event(
    sequence: Sequence,
    token_ids: list[int],
    reason: FinishReason | None,
    *,
    logprobs: list[TokenLogprobs] | None = None,
    stop_reason: int | None = None,
    error: str | None = None,
) -> Event:
    is_first = sequence.output_count <= 1
    started = sequence.started_s
    return Event(
        request_id=sequence.request.request_id,
        index=sequence.index,
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=reason,
        stop_reason=stop_reason,
        prompt_logprobs=sequence.prompt_logprobs if is_first else None,
        cached_tokens=sequence.cached_tokens,
        error=error,
        queue_s=0.0 if started is None else started - sequence.arrival_s,
        guesses=sequence.guesses,
    )


def _logprobs(sample: Sample, result: StepResult, i: int) -> TokenLogprobs:
    count = max(sample.logprobs, 0)
    return TokenLogprobs(
        token_id=int(result.token_ids[i]),
        logprob=float(result.logprobs[i]),
        rank=int(result.ranks[i]),
        top_ids=result.top_ids[i, :count].tolist(),
        top_logprobs=result.top_logprobs[i, :count].tolist(),
    )
