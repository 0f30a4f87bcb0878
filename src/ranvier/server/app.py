"""The HTTP application: the table of routes, and those that only look something up.

The way in: Front (id, key, metrics), the route, body, generate, answer; the way out: answer, wire,
stream. Everything that fails is answered in one envelope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ranvier.core.errors import RequestError
from ranvier.core.step import RunnerInfo
from ranvier.link.client import EngineClient
from ranvier.server.adapters import AdapterRoutes
from ranvier.server.generate import Generation
from ranvier.server.http.errors import HANDLERS, error_response, json_response
from ranvier.server.http.front import OPEN_PATHS, Front
from ranvier.server.metrics import Metrics
from ranvier.server.options import ServerOptions
from ranvier.server.pictures import PictureDesk
from ranvier.server.wire.answers import Chat, Completion, ModelCard, ModelList
from ranvier.server.wire.openapi import RouteRow, openapi
from ranvier.server.wire.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from ranvier.text.codec import TextCodec
from ranvier.version import __version__

__all__ = ["make_app"]

PATHS_OF_FILES = ("file", "path", "dir")


class Tokens(msgspec.Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(msgspec.Struct):
    """The answer of /detokenize."""

    prompt: str


class Version(msgspec.Struct):
    """The answer of /version."""

    version: str


class Load(msgspec.Struct):
    """The answer of /load."""

    server_load: int


class _Service:
    """The routes that look something up."""

    def __init__(self, generation: Generation, metrics: Metrics, created: int) -> None:
        self._generation = generation
        self._codec = generation.codec
        self._client = generation.client
        self._options = generation.options
        self._metrics = metrics
        self._created = created

    async def models(self, http: Request) -> Response:
        cards = [self._card(name) for name in self._options.model_names]
        cards += self._generation.adapters.cards(self._codec.model_len_max)
        return json_response(ModelList(data=cards))

    async def model(self, http: Request) -> Response:
        name = http.path_params["name"]
        adapters = self._generation.adapters
        if adapters.check(name):
            return json_response(self._card(name))
        cards = {card.id: card for card in adapters.cards(self._codec.model_len_max)}
        # One that nobody has asked for lies in its folder still.
        return json_response(cards.get(name) or self._card(name))

    async def tokenize(self, http: Request) -> Response:
        body, _ = await self._generation.body(http, TokenizeRequest)
        self._generation.adapters.check(body.model)
        if body.messages is not None:
            ids = await self._generation.render(body)
        elif body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = await self._generation.encode(body.prompt, special=special)
        else:
            raise RequestError("Give prompt or messages.", param="prompt")
        strings = [self._codec.token_text(i) for i in ids] if body.return_token_strs else None
        return json_response(Tokens(len(ids), self._codec.model_len_max, ids, strings))

    async def detokenize(self, http: Request) -> Response:
        body, _ = await self._generation.body(http, DetokenizeRequest)
        self._generation.adapters.check(body.model)
        for token in body.tokens:
            if token >= self._codec.vocab_size:
                raise RequestError(
                    f"tokens: id {token} is not in [0, {self._codec.vocab_size}).", param="tokens"
                )
        text = await asyncio.to_thread(self._codec.decode, body.tokens, skip_special_tokens=False)
        return json_response(Text(text))

    async def tokenizer_info(self, http: Request) -> Response:
        config = {
            key: value
            for key, value in self._codec.tokenizer_config.items()
            if not key.endswith(PATHS_OF_FILES) and "name_or_path" not in key
        }
        kind = config.get("tokenizer_class", "PreTrainedTokenizerFast")
        template = self._codec.chat_template
        return json_response({**config, "tokenizer_class": kind, "chat_template": template})

    async def health(self, http: Request) -> Response:
        is_draining = self._generation.gate.is_draining
        trouble = "The server is draining." if is_draining else self._client.trouble()
        if trouble is not None:
            return error_response(503, trouble)
        degraded = self._client.degraded()
        return Response() if degraded is None else json_response({"degraded": degraded})

    async def live(self, http: Request) -> Response:
        return Response()

    async def version(self, http: Request) -> Response:
        return json_response(Version(__version__))

    async def metrics(self, http: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._metrics.render(), headers={"content-type": kind})

    async def load(self, http: Request) -> Response:
        return json_response(Load(self._generation.gate.open_count))

    async def reset_prefix_cache(self, http: Request) -> Response:
        self._client.reset_prefix_cache()
        return Response()

    def _card(self, name: str) -> ModelCard:
        length = self._codec.model_len_max
        return ModelCard(id=name, created=self._created, root=name, max_model_len=length)

    def rows(self) -> list[RouteRow]:
        """The table of routes, by the options."""
        generation, options = self._generation, self._options
        rows = [
            RouteRow("POST", "/v1/completions", generation.completions, "Complete prompts.",
                     CompletionRequest, Completion),
            RouteRow("POST", "/v1/chat/completions", generation.chat, "Answer a conversation.",
                     ChatRequest, Chat),
            RouteRow("GET", "/v1/models", self.models, "The served models.", None, ModelList),
            RouteRow("GET", "/v1/models/{name:path}", self.model, "One model.", None, ModelCard),
            RouteRow("POST", "/tokenize", self.tokenize, "Text to ids.", TokenizeRequest, Tokens),
            RouteRow("POST", "/detokenize", self.detokenize, "Ids to text.",
                     DetokenizeRequest, Text),
            RouteRow("GET", "/health", self.health, "200 while requests can be served."),
            RouteRow("GET", "/live", self.live, "200 while the process runs."),
            RouteRow("GET", "/ping", self.health, "As /health."),
            RouteRow("POST", "/ping", self.health, "As /health."),
            RouteRow("GET", "/version", self.version, "Ranvier's version.", None, Version),
            RouteRow("GET", "/metrics", self.metrics, "Prometheus metrics, as text."),
        ]  # fmt: skip
        if generation.info.adapter_slots:
            rows += AdapterRoutes(generation.adapters).rows()
        if options.enable_tokenizer_info_endpoint:
            rows.append(RouteRow("GET", "/tokenizer_info", self.tokenizer_info, "Its config."))
        if options.enable_server_load_tracking:
            rows.append(RouteRow("GET", "/load", self.load, "Open requests.", None, Load))
        if options.server_dev_mode:
            path, handler = "/reset_prefix_cache", self.reset_prefix_cache
            rows.append(RouteRow("POST", path, handler, "Forget cached prefixes."))
        return rows


def make_app(
    options: ServerOptions,
    codec: TextCodec,
    client: EngineClient,
    info: RunnerInfo,
    *,
    created: int = 0,
    pictures: PictureDesk | None = None,
) -> Starlette:
    """The ASGI application over a running engine; `state` has its gate and its adapters."""
    metrics = Metrics(options, info.model_len_max)
    generation = Generation(options, codec, client, metrics, info, pictures)
    metrics.attach(client.stats, generation.gate)
    metrics.adapter_slots = info.adapter_slots
    client.on_stats = metrics.heard
    rows = _Service(generation, metrics, created).rows()
    routes = _routes(rows)
    if not options.disable_fastapi_docs:
        document = openapi(rows, has_keys=bool(options.api_keys), open_paths=OPEN_PATHS)

        async def show(http: Request) -> Response:
            return json_response(document)

        routes.append(Route("/openapi.json", show, methods=["GET"]))
    paths = frozenset(route.path for route in routes)
    middleware: list[Any] = [Middleware(Front, options, metrics.http, paths)]
    if options.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers,
            allow_credentials=options.allow_credentials,
        )
        middleware.insert(0, cors)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.state.gate, app.state.adapters = generation.gate, generation.adapters
    return app


def _routes(rows: Sequence[RouteRow]) -> list[Route]:
    """One route a path: a method that it lacks is answered with 405."""
    by_path: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_path.setdefault(row.path, {})[row.method] = row.handler
    return [
        Route(path, next(iter(handlers.values())), methods=list(handlers))
        for path, handlers in by_path.items()
    ]
