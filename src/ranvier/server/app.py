"""The HTTP application: routes, keys, errors. Everything is answered in one error envelope.

All routes but the probes need the key, where one is set. A client that goes away cancels its
request.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ranvier.core.errors import CapacityError, ModelNotFound, RanvierError, RequestError
from ranvier.core.limits import LIMITS
from ranvier.engine.client import EngineClient
from ranvier.server.answer import Answer, check_stream
from ranvier.server.gate import Gate
from ranvier.server.metrics import Metrics
from ranvier.server.protocol import ChatRequest, CompletionRequest, decode_body, sampling_params
from ranvier.text.codec import TextCodec
from ranvier.version import __version__

__all__ = ["ServerOptions", "make_app"]

OPEN_PATHS = {"/health", "/live", "/ping", "/version"}
TYPES = {400: "BadRequestError", 401: "UnauthorizedError", 404: "NotFoundError",
         405: "MethodNotAllowedError", 413: "RequestTooLargeError",
         503: "ServiceUnavailableError"}  # fmt: skip
Call = Callable[[Request], Awaitable[Response]]
LOG = logging.getLogger("ranvier.server")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the front needs to know."""

    model_name: str
    api_keys: tuple[str, ...] = ()
    is_strict: bool = False


@dataclass
class _Service:
    options: ServerOptions
    codec: TextCodec
    client: EngineClient
    metrics: Metrics
    gate: Gate
    created: int = 0

    async def completions(self, http: Request) -> Response:
        body, unknown = await self._body(http, CompletionRequest)
        self._check_model(body.model)
        wanted = body.max_tokens if body.max_tokens is not None else 16
        params = sampling_params(
            body, self.codec.default_sampling_params(), max_tokens=wanted, logprobs=body.logprobs
        )
        if body.echo and body.logprobs is not None:
            params = params.replace(prompt_logprobs=body.logprobs)
        prompts = self._prompts(body.prompt)
        return await self._answer(body, "completion", prompts, params, unknown)

    async def chat(self, http: Request) -> Response:
        body, unknown = await self._body(http, ChatRequest)
        self._check_model(body.model)
        if body.chat_template is not None:
            raise RequestError("chat_template of a request is not trusted.", param="chat_template")
        limit = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = sampling_params(
            body, self.codec.default_sampling_params(), max_tokens=limit, logprobs=logprobs
        )
        text = self.codec.render_chat(
            [_message(m) for m in body.messages],
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **(body.chat_template_kwargs or {}),
        )
        ids = self.codec.encode(text, add_special_tokens=False)
        return await self._answer(body, "chat", [ids], params, unknown)

    async def models(self, http: Request) -> Response:
        name = http.path_params.get("name")
        card = {
            "id": self.options.model_name, "object": "model", "created": self.created,
            "owned_by": "ranvier", "root": self.options.model_name, "parent": None,
            "max_model_len": self.codec.model_len_max,
        }  # fmt: skip
        if name is None:
            return _json({"object": "list", "data": [card]})
        self._check_model(name)
        return _json(card)

    async def tokenize(self, http: Request) -> Response:
        fields = await self._fields(http)
        if "messages" in fields:
            text: Any = self.codec.render_chat(fields["messages"])
            special = False
        else:
            text, special = fields.get("prompt", 0), bool(fields.get("add_special_tokens", True))
        if not isinstance(text, str):
            raise RequestError("prompt must be a string.", param="prompt")
        ids = self.codec.encode(text, add_special_tokens=special)
        return _json({"count": len(ids), "max_model_len": self.codec.model_len_max, "tokens": ids})

    async def detokenize(self, http: Request) -> Response:
        ids = (await self._fields(http)).get("tokens")
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise RequestError("tokens must be a list of token ids.", param="tokens")
        return _json({"prompt": self.codec.decode(ids, skip_special_tokens=False)})

    async def health(self, http: Request) -> Response:
        trouble = "The server is draining." if self.gate.is_draining else self.client.trouble()
        return Response() if trouble is None else _error(503, trouble, None)

    async def show_metrics(self, http: Request) -> Response:
        return PlainTextResponse(self.metrics.render(self.client.stats()))

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.options.model_name:
            raise ModelNotFound(
                f"The model {name!r} does not exist; served: {self.options.model_name!r}.",
                param="model",
            )

    def _prompts(self, prompt: Any) -> list[list[int]]:
        several = prompt if isinstance(prompt, list) and _is_nested(prompt) else [prompt]
        if len(several) > LIMITS.prompts_max:
            raise RequestError(
                f"{len(several)} prompts, at most {LIMITS.prompts_max}.", param="prompt"
            )
        return [self.codec.encode(p) if isinstance(p, str) else list(p) for p in several]

    async def _answer(
        self, body: Any, kind: str, prompts: list[list[int]], params: Any, unknown: list[str]
    ) -> Response:
        check_stream(params, is_stream=body.stream)
        echo = bool(getattr(body, "echo", False))
        answer = Answer(
            kind, self.codec, self.client, self.options.model_name, prompts, params, echo
        )
        answer.check_lengths()
        entry = self.gate.enter()
        headers = {"x-request-id": answer.id}
        if unknown:
            headers["x-ignored-params"] = ",".join(unknown)
            self.metrics.ignored.inc(len(unknown))
        if not body.stream:
            with entry:
                return _json(await answer.whole(), headers=headers)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        stream = _sse(answer.chunks(with_usage=with_usage), entry)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def _body(self, http: Request, kind: type[Any]) -> tuple[Any, list[str]]:
        return decode_body(await _read(http), kind, is_strict=self.options.is_strict)

    async def _fields(self, http: Request) -> dict[str, Any]:
        try:
            fields = msgspec.json.decode(await _read(http))
        except msgspec.DecodeError:
            raise RequestError("The body is not valid JSON.") from None
        if not isinstance(fields, dict):
            raise RequestError("The body must be a JSON object.")
        return fields


def make_app(
    options: ServerOptions, codec: TextCodec, client: EngineClient, *, created: int = 0
) -> Starlette:
    """The ASGI application over a running engine."""
    gate = Gate()
    service = _Service(options, codec, client, Metrics(options.model_name), gate, created)

    async def alive(http: Request) -> Response:
        return Response(status_code=200)

    async def version(http: Request) -> Response:
        return _json({"version": __version__})

    routes = [
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
        Route("/tokenize", service.tokenize, methods=["POST"]),
        Route("/detokenize", service.detokenize, methods=["POST"]),
        Route("/health", service.health),
        Route("/live", alive),
        Route("/ping", service.health, methods=["GET", "POST"]),
        Route("/version", version),
        Route("/metrics", service.show_metrics),
    ]
    handlers: Any = {RanvierError: _on_error, HTTPException: _on_http, Exception: _on_bug}
    key = Middleware(_Keys, keys=options.api_keys)
    app = Starlette(routes=routes, middleware=[key], exception_handlers=handlers)
    app.state.gate = gate
    return app


class _Keys(BaseHTTPMiddleware):
    """Compares keys in constant time; every route but the probes."""

    def __init__(self, app: Any, keys: tuple[str, ...]) -> None:
        super().__init__(app)
        self._keys = [key.encode() for key in keys]

    async def dispatch(self, request: Request, call_next: Call) -> Response:
        if not self._keys or request.url.path in OPEN_PATHS or self._is_known(request):
            return await call_next(request)
        return _error(401, "The API key is missing or wrong.", None)

    def _is_known(self, request: Request) -> bool:
        given = request.headers.get("x-api-key", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token
        return any([hmac.compare_digest(given.encode(), key) for key in self._keys])


async def _read(http: Request) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > LIMITS.request_bytes_max:
            raise HTTPException(413, f"The body is larger than {LIMITS.request_bytes_max} bytes.")
        parts.append(part)
    return b"".join(parts)


async def _sse(
    chunks: AsyncIterator[dict[str, Any]], entry: AbstractContextManager[None]
) -> AsyncIterator[bytes]:
    """Server-sent events; an error after the start is a data line of its own."""
    try:
        with entry:
            async for chunk in chunks:
                yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    except RanvierError as error:
        yield (
            b"data: " + msgspec.json.encode(_envelope(error.status, error.message, None)) + b"\n\n"
        )
    yield b"data: [DONE]\n\n"


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its text parts joined. Raises RequestError for other parts."""
    content = message.get("content")
    if not isinstance(message.get("role"), str):
        raise RequestError("A message has no role.", param="messages")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise RequestError(f"Content of type {kind!r} is not supported.", param="messages")
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}


def _is_nested(prompt: list[Any]) -> bool:
    """Whether a list holds prompts rather than ids. Raises RequestError for a mixture."""
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise RequestError("prompt mixes ids, strings and lists.", param="prompt")
    return bool(kinds) and int not in kinds


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status, headers=headers, media_type="application/json")


def _envelope(status: int, message: str, param: str | None) -> dict[str, Any]:
    kind = TYPES.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _error(status: int, message: str, param: str | None) -> Response:
    return _json(_envelope(status, message, param), status)


async def _on_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, RanvierError)
    message = f"{error.message} {error.hint}".strip()
    response = _error(error.status, message, getattr(error, "param", None))
    if isinstance(error, CapacityError):
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


async def _on_http(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, None)


async def _on_bug(http: Request, error: Exception) -> Response:
    LOG.exception("internal error", exc_info=error)
    return _error(500, "Internal error.", None)
