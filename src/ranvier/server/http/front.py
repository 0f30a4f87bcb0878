"""Front: the first to see a request. Its id, its key, what it costs, and one line of log.

Plain ASGI, no copies: a stream's chunks pass through. Every route but the probes needs the key,
where one is set; keys are compared by their hashes, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ranvier.server.http.errors import error_response
from ranvier.server.http.log import log_access
from ranvier.server.metrics import HttpMetrics
from ranvier.server.options import ServerOptions

__all__ = ["OPEN_PATHS", "Front"]

OPEN_PATHS = frozenset({"/health", "/live", "/ping", "/version"})
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Front:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, options: ServerOptions, metrics: HttpMetrics, paths: frozenset[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._keys = [hashlib.sha256(key.encode()).digest() for key in options.api_keys]
        self._open = OPEN_PATHS | ({"/metrics"} if options.open_metrics else frozenset())
        self._has_log = not options.disable_uvicorn_access_log
        self._unlogged = frozenset(options.disable_access_log_for_endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets, no lifespan
        seen = _Seen(scope, send)
        try:
            response = self._refusal(scope, seen)
            await (response or self._app)(scope, receive, seen.send)
        finally:
            self._count(scope, seen)

    def _refusal(self, scope: Scope, seen: _Seen) -> ASGIApp | None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id")
        if given is not None and not REQUEST_ID.fullmatch(given):
            return error_response(400, "X-Request-Id must be 1 to 128 printable characters.")
        seen.request_id = given or secrets.token_hex(16)
        if not self._keys or scope["path"] in self._open or self._is_known(headers):
            return None
        authenticate = {"www-authenticate": "Bearer"}
        return error_response(401, "The API key is missing or wrong.", headers=authenticate)

    def _is_known(self, headers: Headers) -> bool:
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token
        digest = hashlib.sha256(given.encode()).digest()
        return any([hmac.compare_digest(digest, key) for key in self._keys])

    def _count(self, scope: Scope, seen: _Seen) -> None:
        path = scope["path"]
        if self._has_log and path not in self._unlogged:
            log_access(scope, seen.status)
        handler = path if path in self._paths else "none"
        if path.startswith("/v1/models/"):
            handler = "/v1/models/{name}"
        size = Headers(scope=scope).get("content-length", "0")
        self._metrics.request_done(
            scope["method"], handler, seen.status,
            seconds=time.perf_counter() - seen.start_s,
            sizes=(int(size) if size.isdigit() else 0, seen.size),
        )  # fmt: skip


class _Seen:
    """What passes on the way out; the request's id is added to it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status = 499
        self.size = 0
        self.start_s = time.perf_counter()
        self.request_id = ""
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.request_id:
                MutableHeaders(scope=message)["x-request-id"] = self.request_id
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)
