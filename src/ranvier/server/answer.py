"""Answers: prompts to requests, events to one response object or to a stream of chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ranvier.core.errors import DeviceError, RequestError
from ranvier.core.request import Event, Request, TokenLogprobs
from ranvier.core.sampling import SamplingParams
from ranvier.engine.client import EngineClient
from ranvier.server.choice import Choice, chat_logprobs, completion_logprobs
from ranvier.text.codec import TextCodec

__all__ = ["Answer", "check_stream"]


@dataclass
class Answer:
    """One HTTP request on its way: kind "chat" or "completion", one or more prompts."""

    kind: str
    codec: TextCodec
    client: EngineClient
    model: str
    prompts: list[list[int]]
    params: SamplingParams
    echo: bool = False
    id: str = ""
    created: int = 0
    _requests: list[Request] = field(default_factory=list)
    _choices: dict[tuple[str, int], Choice] = field(default_factory=dict)
    _prompt_logprobs: dict[str, list[TokenLogprobs | None]] = field(default_factory=dict)
    _cached: int = 0

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        count = self.params.sequence_count
        for i, prompt in enumerate(self.prompts):
            seed = secrets.randbits(62)
            request = self.codec.make_request(f"{self.id}-{i}", prompt, self.params, seed)
            self._requests.append(request)
            for index in range(count):
                choice = Choice(self.codec, request, i * count + index)
                self._choices[request.request_id, index] = choice

    def check_lengths(self) -> None:
        """Refuse empty prompts and those that do not fit, before anything is sent."""
        limit = self.codec.model_len_max - (self.params.max_tokens != 0)
        asked = self.params.max_tokens or 0
        for request in self._requests:
            length = len(request.prompt_token_ids)
            if not length:
                raise RequestError("The prompt is empty.", param="prompt")
            if length > limit:
                raise RequestError(
                    f"The prompt has {length} tokens; at most {limit} fit into the model's length "
                    f"of {self.codec.model_len_max}.",
                    param="messages" if self.kind == "chat" else "prompt",
                )
            if length + asked > self.codec.model_len_max:
                raise RequestError(
                    f"max_tokens={asked} and a prompt of {length} tokens exceed the model's length "
                    f"of {self.codec.model_len_max}.",
                    param="max_tokens",
                )

    async def whole(self) -> dict[str, Any]:
        """The response object."""
        async for event in self._events():
            self._take(event)
        choices = [self._final(request, choice) for request, choice in self._best()]
        kind = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream, in order."""
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        head = self._head(kind)
        started: set[int] = set()
        async for event in self._events():
            choice, text = self._take(event)
            if not (text or choice.finish_reason or event.logprobs):
                continue
            body = self._piece(choice, text, event, is_first=choice.index not in started)
            started.add(choice.index)
            yield {**head, "choices": [{"index": choice.index, **body}]}
        if with_usage:
            yield {**head, "choices": [], "usage": self._usage()}

    async def _events(self) -> AsyncIterator[Event]:
        """Events of all prompts as they come."""
        async with self.client.submit(self._requests) as stream:
            async for events in stream:
                for event in events:
                    if self._choices[event.request_id, event.index].finish_reason is None:
                        yield event

    def _take(self, event: Event) -> tuple[Choice, str]:
        if event.finish_reason == "error":
            raise DeviceError(event.error or "A step failed.")
        choice = self._choices[event.request_id, event.index]
        self._cached += event.cached_tokens if not choice.token_ids else 0
        if event.prompt_logprobs is not None:
            self._prompt_logprobs[event.request_id] = event.prompt_logprobs
        text = choice.take(event)
        if choice.finish_reason and not event.finish_reason:
            self.client.cancel(event.request_id, event.index)
        return choice, text

    def _best(self) -> list[tuple[Request, Choice]]:
        """The choices to return: all, or of best_of the n of highest mean log-probability."""
        found = []
        for request in self._requests:
            own = [c for (name, _), c in self._choices.items() if name == request.request_id]
            if self.params.best_of is not None:
                own.sort(key=lambda c: -c.logprob_sum / max(len(c.token_ids), 1))
                own = own[: self.params.n]
            found += [(request, choice) for choice in own]
        for index, (_, choice) in enumerate(found):
            choice.index = index
        return found

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(r.prompt_token_ids) for r in self._requests)
        completion = sum(len(c.token_ids) for c in self._choices.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }

    def _final(self, request: Request, choice: Choice) -> dict[str, Any]:
        ends = {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        wanted = self.params.logprobs is not None
        if self.kind == "chat":
            message = {"role": "assistant", "content": choice.text}
            logprobs = chat_logprobs(self.codec, choice.entries) if wanted else None
            return {"index": choice.index, "message": message, "logprobs": logprobs, **ends}
        ids, entries = choice.token_ids, list[TokenLogprobs | None](choice.entries)
        text = choice.text
        if self.echo:
            ids = request.prompt_token_ids + ids
            entries = self._prompt_logprobs.get(request.request_id, []) + entries
            text = self._prompt_text(request) + text
        logprobs = completion_logprobs(self.codec, entries, ids, 0) if wanted else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, **ends}

    def _piece(self, choice: Choice, text: str, event: Event, *, is_first: bool) -> dict[str, Any]:
        ends = {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        entries = event.logprobs or []
        wanted = self.params.logprobs is not None and entries
        if self.kind == "chat":
            delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
            if text or is_first:
                delta["content"] = text
            logprobs = chat_logprobs(self.codec, entries) if wanted else None
            return {"delta": delta, "logprobs": logprobs, **ends}
        ids, start = event.token_ids, len(choice.text) - len(text)
        if self.echo and is_first:
            request = next(r for r in self._requests if r.request_id == event.request_id)
            text = self._prompt_text(request) + text
        logprobs = completion_logprobs(self.codec, [*entries], ids, start) if wanted else None
        return {"text": text, "logprobs": logprobs, **ends}

    def _prompt_text(self, request: Request) -> str:
        return self.codec.decode(request.prompt_token_ids, skip_special_tokens=False)


def check_stream(params: SamplingParams, *, is_stream: bool) -> None:
    """Refuse what a stream can't give."""
    if is_stream and params.best_of is not None and params.best_of > params.n:
        raise RequestError("best_of cannot be streamed.", param="best_of")
