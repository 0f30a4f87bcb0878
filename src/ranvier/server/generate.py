"""POST /v1/completions and /v1/chat/completions: from a body to a job, and the job to an answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ranvier.core.errors import CapacityError, RequestError
from ranvier.core.media import PromptMedia
from ranvier.core.request import Request, check_fits
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.link.client import EngineClient
from ranvier.server.adapters import ServedAdapters
from ranvier.server.answer import Answer, Job
from ranvier.server.gate import Gate
from ranvier.server.http.body import decode_body, read_body
from ranvier.server.http.errors import ClientGone, json_response
from ranvier.server.http.log import RequestLog
from ranvier.server.http.stream import EventStream, until_gone
from ranvier.server.metrics import Metrics
from ranvier.server.options import ServerOptions
from ranvier.server.per_request import Telling
from ranvier.server.pictures import Conversation, PictureDesk
from ranvier.server.prompts import plain_message, split_prompts, with_role
from ranvier.server.structured import GrammarDesk, asked_structure
from ranvier.server.wire.requests import ChatRequest, CompletionRequest, GenerateRequest
from ranvier.text.codec import TextCodec

__all__ = ["Generation"]

COMPLETION_TOKENS = 16
"""Of a completion that does not say how many, as OpenAI's."""
OFF_LOOP_CHARS = 4096
"""Longer texts are encoded in a thread."""
RESERVED = {
    "self", "messages", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize",
}  # fmt: skip
"""What chat_template_kwargs may not replace."""
T = TypeVar("T")


class Generation:
    """The two routes that generate, and what they share with the routes beside them."""

    def __init__(
        self,
        options: ServerOptions,
        codec: TextCodec,
        client: EngineClient,
        metrics: Metrics,
        info: RunnerInfo,
        pictures: PictureDesk | None = None,
    ) -> None:
        self.options = options
        self.codec = codec
        self.client = client
        self.metrics = metrics
        self.info = info
        self.adapters = ServedAdapters(options, client)
        self.pictures = pictures or PictureDesk()
        self.grammars = GrammarDesk()
        self.log = RequestLog(options)
        self.gate = Gate(
            rows=info.rows_max,
            requests_max=options.max_num_queued_reqs,
            tokens_max=options.max_num_queued_tokens,
        )

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        body, unknown = await self.body(http, CompletionRequest)
        adapter = await self.adapters.find(body.model)
        params = await self.grammars.check(self._params(body, logprobs=body.logprobs))
        if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
            params = params.replace(prompt_logprobs=body.logprobs)
        special = body.add_special_tokens is not False
        prompts = [await self.encode(p, special=special) for p in split_prompts(body.prompt)]
        job = _with_adapter(self._job(http, "completion", body, params, prompts), adapter)
        if body.echo:
            job = replace(job, echo=self._echo(split_prompts(body.prompt), job))
        return await self._respond(http, body, job, unknown)

    async def chat(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        body, unknown = await self.body(http, ChatRequest)
        adapter = await self.adapters.find(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs=true.", param="top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = await self.grammars.check(self._params(body, logprobs=logprobs))
        with ExitStack() as held:
            ids, media = await self._see(body, held)
            job = _with_adapter(self._job(http, "chat", body, params, [ids], media), adapter)
            last = body.messages[-1]
            if body.echo and last.get("role") == job.role and isinstance(last.get("content"), str):
                job = replace(job, echo=[last["content"]])
            return await self._respond(http, body, job, unknown, held)

    async def body(self, http: HttpRequest, kind: type[T]) -> tuple[T, list[str]]:
        """The request's struct and the names of its unknown fields."""
        found = decode_body(await read_body(http), kind, is_strict=self.options.strict_params)
        if found[1]:
            self.metrics.ignored_params += len(found[1])
        return found

    async def encode(self, prompt: str | list[Any], *, special: bool) -> list[int]:
        """Ids of a prompt; a long text does not block other requests."""
        if not isinstance(prompt, str):
            return list(prompt)
        try:
            if len(prompt) < OFF_LOOP_CHARS:
                return self.codec.encode(prompt, add_special_tokens=special)
            return await asyncio.to_thread(self.codec.encode, prompt, add_special_tokens=special)
        except UnicodeEncodeError:
            raise RequestError("The text holds lone surrogates.", param="prompt") from None

    async def render(self, body: Any) -> list[int]:
        """Ids of a conversation without pictures."""
        render = self._renderer(body)
        text = await asyncio.to_thread(render, [plain_message(m) for m in body.messages])
        return await self.encode(text, special=bool(body.add_special_tokens))

    async def _see(
        self, body: ChatRequest, held: ExitStack
    ) -> tuple[list[int], PromptMedia | None]:
        """Ids of a conversation, and its pictures, which count until `held` is left."""
        kwargs = body.mm_processor_kwargs or {}
        if kwargs:
            _check_trusted(self.options.trust_request_mm_kwargs, "mm_processor_kwargs")
            self.pictures.check(kwargs)
        if not Conversation(body.messages).urls:
            return await self.render(body), None
        if body.truncate_prompt_tokens is not None:
            raise RequestError(
                "A prompt with pictures is not truncated.", param="truncate_prompt_tokens"
            )
        special = bool(body.add_special_tokens)
        return await self.pictures.weave(
            Conversation([with_role(m) for m in body.messages], kwargs),
            self._renderer(body),
            lambda text: self.codec.encode(text, add_special_tokens=special),
            held,
        )

    def _renderer(self, body: Any) -> Callable[[list[dict[str, Any]]], str]:
        """Messages to text. The template runs in a process that ends it when it is slow."""
        if body.chat_template is not None:
            _check_trusted(self.options.trust_request_chat_template, "chat_template")
        kwargs = {**self.options.default_chat_template_kwargs, **(body.chat_template_kwargs or {})}
        reserved = sorted(RESERVED & kwargs.keys())
        if reserved:
            raise RequestError(
                f"chat_template_kwargs may not set {', '.join(reserved)}.",
                param="chat_template_kwargs",
            )
        documents = getattr(body, "documents", None)
        if documents is not None:
            kwargs["documents"] = documents
        return lambda messages: self.codec.render_chat(
            messages,
            chat_template=body.chat_template,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            **kwargs,
        )

    def _params(self, body: GenerateRequest, *, logprobs: int | None) -> SamplingParams:
        """The request's parameters over the model's defaults. Raises RequestError."""
        defaults = self.codec.default_sampling_params()
        fields = {name: getattr(defaults, name) for name in SamplingParams.__struct_fields__}
        for name in fields:
            value = getattr(body, name, None)
            # The interval of a stream is kept by the answer, not by the engine.
            if value is not None and name not in ("stream_interval", "structured_outputs"):
                fields[name] = value
        limit = getattr(body, "max_completion_tokens", None)
        limit = limit if limit is not None else body.max_tokens
        # What nobody said follows from the room that a prompt leaves.
        fields.update(max_tokens=limit, logprobs=logprobs, truncate_prompt_tokens=None)
        fields["structured_outputs"] = asked_structure(body)
        params = SamplingParams(**fields)
        if body.stream and params.best_of is not None and params.best_of > params.n:
            raise RequestError("best_of cannot be streamed.", param="best_of")
        return params

    def _job(
        self,
        http: HttpRequest,
        kind: Any,
        body: GenerateRequest,
        params: SamplingParams,
        prompts: list[list[int]],
        media: PromptMedia | None = None,
    ) -> Job:
        options, stream = self.options, body.stream_options
        given = body.request_id or http.headers.get("x-request-id")
        name = ("chatcmpl-" if kind == "chat" else "cmpl-") + (given or secrets.token_hex(12))
        cut = [_truncated(ids, body, params, self.codec.model_len_max) for ids in prompts]
        always = bool(stream and stream.include_usage and stream.continuous_usage_stats)
        return Job(
            kind=kind,
            id=name,
            model=body.model or options.model_name,
            requests=[self._request(name, ids, body, params, media) for ids in cut],
            role=options.response_role,
            stream_interval=body.stream_interval or 1,
            with_usage=bool(stream and stream.include_usage) or options.enable_force_include_usage,
            with_usage_always=always,
            with_details=options.enable_prompt_tokens_details,
            with_ids=bool(body.return_token_ids),
            tokens_as_ids=(
                options.return_tokens_as_token_ids
                if body.return_tokens_as_token_ids is None
                else body.return_tokens_as_token_ids
            ),
            shows_prompt_logprobs=body.prompt_logprobs is not None,
            truncated_tokens=sum(map(len, prompts)) - sum(map(len, cut)),
            telling=Telling.of(options, self.info.buckets.lookahead),
        )

    def _request(
        self,
        name: str,
        ids: list[int],
        body: GenerateRequest,
        params: SamplingParams,
        media: PromptMedia | None,
    ) -> Request:
        """A core request that fits. Raises RequestError."""
        param = "messages" if isinstance(body, ChatRequest) else "prompt"
        limit = self.codec.model_len_max
        room = limit - len(ids)
        if params.max_tokens is None:
            told = self.codec.generation_config.get("max_new_tokens")
            is_chat = isinstance(body, ChatRequest)
            wanted = told if type(told) is int else (None if is_chat else COMPLETION_TOKENS)
            if wanted is not None:
                params = params.replace(max_tokens=max(min(wanted, room), 1))
        known = self.pictures.token_ids if media else frozenset[int]()
        request = self.codec.make_request(
            f"{name}-{secrets.token_hex(6)}", ids, params, secrets.randbits(62), known
        )
        request.cache_salt, request.media = body.cache_salt or "", media
        check_fits(request, self.info, param=param)
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"max_tokens={params.max_tokens} and a prompt of {len(ids)} tokens exceed the "
                f"model's length of {limit}.",
                param="max_tokens",
            )
        return request

    def _echo(self, prompts: list[Any], job: Job) -> list[str]:
        """Each prompt as it was given; ids as text."""
        return [
            prompt
            if isinstance(prompt, str) and not job.truncated_tokens
            else self.codec.decode(request.prompt_token_ids, skip_special_tokens=False)
            for prompt, request in zip(prompts, job.requests, strict=True)
        ]

    async def _respond(
        self,
        http: HttpRequest,
        body: GenerateRequest,
        job: Job,
        unknown: list[str],
        given: ExitStack | None = None,
    ) -> Response:
        """The answer; what `given` holds is let go with it."""
        trouble = self.client.trouble()
        if trouble is not None:
            raise CapacityError(trouble, hint="Ask another server.")
        headers = _headers(job, unknown)
        self.log.request(job)
        held = ExitStack()
        entry = held.enter_context(
            self.gate.enter(job.sequence_count, job.prompt_tokens, body.request_id)
        )
        if given is not None:
            held.enter_context(given.pop_all())
        answer = Answer(job, self.codec, self.client, self.metrics)
        held.callback(self.log.output, job, answer)
        if body.stream:
            keep_s = self.options.sse_keep_alive_interval
            return EventStream(answer.lines(entry), held, headers, keep_alive_s=keep_s)
        with held:
            whole = await _unless_gone(http, answer.whole(entry))
        return json_response(whole, headers=headers)


def _check_trusted(is_trusted: bool, name: str) -> None:
    """Raise RequestError for a field that a request may bring only where the operator says so."""
    if not is_trusted:
        flag = {"mm_processor_kwargs": "mm-kwargs"}.get(name, name.replace("_", "-"))
        raise RequestError(
            f"{name} of a request is not trusted.",
            param=name,
            hint=f"Start the server with --trust-request-{flag}.",
        )


def _truncated(
    ids: list[int], body: GenerateRequest, params: SamplingParams, length_max: int
) -> list[int]:
    """The part of a prompt that truncate_prompt_tokens keeps."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep == -1:
        keep = max(length_max - max(params.max_tokens or 1, 1), 1)
    return ids[:keep] if body.truncation_side == "right" else ids[-keep:]


def _with_adapter(job: Job, adapter: str) -> Job:
    for request in job.requests:
        request.adapter = adapter
    return job


def _headers(job: Job, unknown: list[str]) -> dict[str, str]:
    headers = {}
    if unknown:
        names = [name.encode("ascii", "replace").decode() for name in unknown[:32]]
        headers["x-ignored-params"] = ",".join(_printable(name)[:64] for name in names)
    if job.truncated_tokens:
        headers["x-truncated-tokens"] = str(job.truncated_tokens)
    return headers


def _printable(name: str) -> str:
    return "".join(char if "!" <= char <= "~" and char != "," else "?" for char in name)


async def _unless_gone(http: HttpRequest, answer: Coroutine[Any, Any, T]) -> T:
    """The answer; cancelled when the client goes away."""
    working = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(until_gone(http.receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
