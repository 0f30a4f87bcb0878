"""Errors on the wire: one envelope for every status, and messages that give nothing away.

{"error": {"message", "type", "param", "code"}}, code being the HTTP status. Messages are Ranvier's
own; what a library says goes to the log.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ranvier.core.errors import CapacityError, DeviceError, InternalError, RanvierError

__all__ = [
    "HANDLERS",
    "ClientGone",
    "ErrorBody",
    "ErrorInfo",
    "envelope",
    "error_response",
    "json_response",
]

LOG = logging.getLogger("ranvier.server")
TYPES = {
    400: "BadRequestError", 401: "UnauthorizedError", 404: "NotFoundError",
    405: "MethodNotAllowedError", 409: "ConflictError", 413: "RequestTooLargeError",
    422: "UnprocessableEntityError", 501: "NotImplementedError", 503: "ServiceUnavailableError",
}  # fmt: skip


class ClientGone(Exception):
    """The client has closed its connection: nobody reads the answer."""


class ErrorInfo(msgspec.Struct):
    """What went wrong; `param` is the request's field, `code` the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct):
    """The body of every answer that is no success."""

    error: ErrorInfo


def envelope(error: RanvierError) -> ErrorBody:
    """The body for an error of ours."""
    message = f"{error.message} {error.hint}".strip()
    if isinstance(error, DeviceError):
        LOG.error("a step failed: %s", error.message)
        message = "The device failed while it computed this request."
    return _body(error.status, message, getattr(error, "param", None))


def error_response(
    status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An answer in the envelope."""
    return json_response(_body(status, message, param), status, headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with a JSON body."""
    body = msgspec.json.encode(value)
    return Response(body, status, headers=headers, media_type="application/json")


def _body(status: int, message: str, param: str | None) -> ErrorBody:
    return ErrorBody(ErrorInfo(message, TYPES.get(status, "InternalServerError"), param, status))


async def _on_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, RanvierError)
    response = json_response(envelope(error), error.status)
    if isinstance(error, CapacityError):
        response.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, InternalError):
        LOG.error("%s %s: %s", http.method, http.url.path, error.message)
    return response


async def _on_http(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "There is no such route.", 405: "The route has no such method."}
    message = details.get(error.status_code, error.detail)
    return error_response(error.status_code, message, headers=dict(error.headers or {}))


async def _on_bug(http: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", http.method, http.url.path, exc_info=error)
    return error_response(500, "Internal error; see the server's log.")


async def _on_gone(http: Request, error: Exception) -> Response:
    return Response(status_code=499)


HANDLERS: dict[Any, Any] = {
    ClientGone: _on_gone,
    RanvierError: _on_error,
    HTTPException: _on_http,
    Exception: _on_bug,
}
