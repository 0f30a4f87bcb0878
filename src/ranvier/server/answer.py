"""Answer: one request's generation, from events to a response object or to a stream's lines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from ranvier.core.request import Event, Request, TokenLogprobs
from ranvier.core.sampling import SamplingParams
from ranvier.link.client import EngineClient
from ranvier.server.gate import Entry
from ranvier.server.metrics import Metrics, SequenceTimes
from ranvier.server.per_request import Telling
from ranvier.server.wire.answers import (
    Chat,
    ChatChoice,
    Chunk,
    Completion,
    CompletionChoice,
    Delta,
    DeltaChoice,
    LogprobsWriter,
    Message,
    RequestMetrics,
    Usage,
)
from ranvier.speculate.tally import Tally
from ranvier.text.choice import Choice, best_choices
from ranvier.text.codec import TextCodec

__all__ = ["Answer", "Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to generate and how to tell it. `echo` is the text put before each prompt's output."""

    kind: Literal["chat", "completion"]
    id: str
    model: str
    requests: list[Request]
    echo: list[str] | None = None
    role: str = "assistant"
    stream_interval: int = 1
    with_usage: bool = False
    with_usage_always: bool = False
    with_details: bool = True
    with_ids: bool = False
    tokens_as_ids: bool = False
    shows_prompt_logprobs: bool = False
    truncated_tokens: int = 0
    telling: Telling = Telling()

    @property
    def params(self) -> SamplingParams:
        return self.requests[0].params

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def sequence_count(self) -> int:
        return sum(request.params.sequence_count for request in self.requests)


@dataclass
class _Part:
    """A choice on its way: what is known, and what of it has not been sent."""

    index: int
    request: Request
    choice: Choice
    writer: LogprobsWriter
    times: SequenceTimes
    tally: Tally = field(default_factory=Tally)
    echo: str = ""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    entries: list[TokenLogprobs] = field(default_factory=list)
    is_started: bool = False


class _Head(TypedDict):
    """What every object of an answer begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None


class Answer:
    """Runs a job on an engine. Use `whole` or `lines`, once."""

    def __init__(self, job: Job, codec: TextCodec, client: EngineClient, metrics: Metrics) -> None:
        self._job = job
        self._client = client
        self._metrics = metrics
        self._created = int(time.time())
        self._fingerprint = metrics.fingerprint
        self._cached: dict[str, int] = {}
        self._prompt_entries: dict[str, list[TokenLogprobs | None]] = {}
        self._parts = {
            (request.request_id, index): self._part(codec, number, request, index)
            for number, request in enumerate(job.requests)
            for index in range(request.params.sequence_count)
        }

    @property
    def texts(self) -> list[str]:
        """What has been generated so far."""
        return [part.choice.text for part in self._parts.values()]

    async def whole(self, entry: Entry) -> Chat | Completion:
        """The response object. Raises what the engine says."""
        async for _ in self._batches(entry):
            pass
        chosen: list[_Part] = []
        for request in self._job.requests:
            own = [p for p in self._parts.values() if p.request is request]
            best = best_choices([part.choice for part in own], request.params)
            chosen += [part for choice in best for part in own if part.choice is choice]
        for index, part in enumerate(chosen):
            part.index = index
        head = self._head(is_chunk=False)
        if self._job.kind == "completion":
            texts = [self._text(part, is_first=True) for part in chosen]
            return Completion(**head, choices=texts, usage=self._usage(), metrics=self._told())
        choices = [self._message(part) for part in chosen]
        answer = Chat(**head, choices=choices, usage=self._usage(), metrics=self._told())
        request = self._job.requests[0]
        if self._job.with_ids:
            answer.prompt_token_ids = request.prompt_token_ids
        if self._job.shows_prompt_logprobs:
            entries = self._prompt_entries.get(request.request_id, [])
            answer.prompt_logprobs = chosen[0].writer.prompt(entries)
        return answer

    async def lines(self, entry: Entry) -> AsyncIterator[bytes]:
        """The lines of a stream; those of one turn together."""
        encode = msgspec.json.encode
        async for parts in self._batches(entry):
            data = b""
            for part in parts:
                chunk = self._chunk(part)
                if chunk is not None:
                    data += b"data: " + encode(chunk) + b"\n\n"
            if data:
                yield data
        if self._job.with_usage:
            usage, told = self._usage(), self._told()
            kind = Chunk if self._job.kind == "chat" else Completion
            last = kind(**self._head(is_chunk=True), choices=[], usage=usage, metrics=told)
            yield b"data: " + encode(last) + b"\n\n"

    async def _batches(self, entry: Entry) -> AsyncIterator[list[_Part]]:
        """The parts that each turn's events have touched."""
        left = len(self._parts)
        async with self._client.submit(self._job.requests) as stream:
            async for events in stream:
                touched: dict[int, _Part] = {}
                now_s = time.monotonic()
                for event in events:
                    part = self._parts[event.request_id, event.index]
                    if part.choice.finish_reason is None:
                        self._take(part, event, now_s)
                        touched[part.index] = part
                        left -= part.choice.finish_reason is not None
                entry.started()
                yield list(touched.values())
                if not left:
                    return

    def _take(self, part: _Part, event: Event, now_s: float) -> None:
        if event.prompt_logprobs is not None:
            self._prompt_entries[event.request_id] = event.prompt_logprobs
        self._cached.setdefault(event.request_id, event.cached_tokens)
        part.text += part.choice.take(event)
        part.ids += event.token_ids
        part.entries += event.logprobs or ()
        part.times.took(event, now_s)
        part.tally.take(event.guesses)
        if event.token_ids:
            self._metrics.took(part.times, len(event.token_ids))
        if part.choice.finish_reason is not None:
            self._metrics.finished(part.times, part.choice.finish_reason)
            if part.choice.is_cut:
                self._client.cancel(event.request_id, event.index)

    def _part(self, codec: TextCodec, number: int, request: Request, index: int) -> _Part:
        params, job = request.params, self._job
        writer = LogprobsWriter(
            codec, as_ids=job.tokens_as_ids, skips_special=params.skip_special_tokens
        )
        at = number * params.sequence_count + index
        echo = job.echo[number] if job.echo is not None else ""
        times = SequenceTimes.of(request)
        return _Part(at, request, Choice(codec, request), writer, times, echo=echo)

    def _chunk(self, part: _Part) -> Chunk | Completion | None:
        """What a part has to say now, or None to wait for more."""
        choice, is_first = part.choice, not part.is_started
        is_due = is_first or choice.finish_reason or len(part.ids) >= self._job.stream_interval
        has_news = part.text or part.entries or choice.finish_reason or is_first
        if not is_due or not (has_news or self._job.with_ids):
            return None
        head, usage = self._head(is_chunk=True), UNSET
        part.is_started = True
        if self._job.kind == "completion":
            chunk: Chunk | Completion = Completion(
                **head, choices=[self._text(part, is_first=is_first)], usage=usage
            )
        else:
            chunk = Chunk(**head, choices=[self._delta(part, is_first=is_first)], usage=usage)
            if is_first and self._job.with_ids:
                chunk.prompt_token_ids = part.request.prompt_token_ids
        if self._job.with_usage_always:
            chunk.usage = self._usage()
        part.text, part.ids, part.entries = "", [], []
        return chunk

    def _text(self, part: _Part, *, is_first: bool) -> CompletionChoice:
        job, params, choice = self._job, part.request.params, part.choice
        ids, entries, text = part.ids, list[TokenLogprobs | None](part.entries), part.text
        before = self._prompt_entries.get(part.request.request_id, [])
        if is_first and job.echo is not None:
            ids, entries = [*part.request.prompt_token_ids, *ids], [*before, *entries]
            text = part.echo + text
        found = CompletionChoice(
            index=part.index,
            text=text,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        if params.logprobs is not None and entries:
            found.logprobs = part.writer.completion(ids, entries)
        if job.with_ids:
            found.token_ids = part.ids
            if is_first:
                found.prompt_token_ids = part.request.prompt_token_ids
        if is_first and job.shows_prompt_logprobs:
            found.prompt_logprobs = part.writer.prompt(before)
        return found

    def _message(self, part: _Part) -> ChatChoice:
        choice, job = part.choice, self._job
        wanted = part.request.params.logprobs is not None
        return ChatChoice(
            index=part.index,
            message=Message(role=job.role, content=part.echo + part.text),
            logprobs=part.writer.chat(part.entries) if wanted else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=part.ids if job.with_ids else UNSET,
        )

    def _delta(self, part: _Part, *, is_first: bool) -> DeltaChoice:
        delta = Delta()
        if is_first:
            delta.role, part.text = self._job.role, part.echo + part.text
        if part.text or is_first:
            delta.content = part.text
        wanted = part.request.params.logprobs is not None and part.entries
        return DeltaChoice(
            index=part.index,
            delta=delta,
            logprobs=part.writer.chat(part.entries) if wanted else None,
            finish_reason=part.choice.finish_reason,
            stop_reason=part.choice.stop_reason,
            token_ids=part.ids if self._job.with_ids else UNSET,
        )

    def _head(self, *, is_chunk: bool) -> _Head:
        names = {"completion": "text_completion", "chat": "chat.completion"}
        name = names[self._job.kind]
        if is_chunk and self._job.kind == "chat":
            name += ".chunk"
        return {
            "id": self._job.id,
            "object": name,
            "created": self._created,
            "model": self._job.model,
            "system_fingerprint": self._fingerprint,
        }

    def _told(self) -> RequestMetrics | UnsetType | None:
        """Of one sequence; null for several, which have no one time."""
        if self._job.telling.is_silent:
            return UNSET
        parts = list(self._parts.values())
        return (
            self._job.telling.metrics(parts[0].times, parts[0].tally) if len(parts) == 1 else None
        )

    def _usage(self) -> Usage:
        prompt = self._job.prompt_tokens
        completion = sum(len(part.choice.token_ids) for part in self._parts.values())
        details = {"cached_tokens": sum(self._cached.values())}
        if self._job.truncated_tokens:
            details["truncated_tokens"] = self._job.truncated_tokens
        shown = details if self._job.with_details or self._job.truncated_tokens else None
        return Usage(prompt, completion, prompt + completion, shown)
