"""From bytes to a request struct: size, depth, types, known and unknown fields.

Every refusal is a RequestError that names the field. Unknown fields are told, not ignored.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.server.wire.requests import UNSUPPORTED

__all__ = ["decode_body", "read_body"]

FIELD = re.compile(r"`\$\.(\w+)")
T = TypeVar("T")


async def read_body(http: Request) -> bytes:
    """The body, at most LIMITS.request_bytes_max. Raises HTTPException 413."""
    told = http.headers.get("content-length", "")
    if told.isdigit() and int(told) > LIMITS.request_bytes_max:
        raise _too_large()
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > LIMITS.request_bytes_max:
            raise _too_large()
        parts.append(part)
    return b"".join(parts)


def decode_body(body: bytes, kind: type[T], *, is_strict: bool) -> tuple[T, list[str]]:
    """(request, names of unknown fields). Raises RequestError with the field's name."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise RequestError("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise RequestError("The body must be a JSON object.")
    if body.count(b"[") + body.count(b"{") > LIMITS.json_depth_max:
        _check_depth(fields)
    known: set[str] = set(kind.__struct_fields__)  # type: ignore[attr-defined]
    for name in sorted(UNSUPPORTED.keys() & fields.keys() - known):
        value = fields[name]
        if value is not None and not _is_in(value, UNSUPPORTED[name]):
            raise RequestError(f"{name} is not supported.", param=name)
    unknown = sorted(fields.keys() - known - UNSUPPORTED.keys())
    if unknown and is_strict:
        told = ", ".join(name[:64] for name in unknown[:16])
        raise RequestError(f"Unknown fields: {told}.", param=unknown[0][:64])
    return _convert(fields, kind), unknown


def _convert(fields: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        message = str(error).partition(" - at `")[0]
        place = FIELD.search(str(error))
        field = place[1] if place else _missing(message)
        raise RequestError(f"{field or 'body'}: {message}.", param=field or None) from None
    except (RecursionError, ValueError, OverflowError):
        raise RequestError("The body holds a value out of range.") from None


def _missing(message: str) -> str:
    """The field of "Object missing required field `x`"."""
    head, _, rest = message.partition("required field `")
    return rest.rstrip("`") if head and rest else ""


def _is_in(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Membership where True is not 1."""
    return any(type(value) is type(item) and value == item for item in allowed)


def _check_depth(fields: dict[str, Any]) -> None:
    level: list[Any] = [fields]
    for _ in range(LIMITS.json_depth_max):
        inner: list[Any] = []
        for item in level:
            values = item.values() if isinstance(item, dict) else item
            inner += [value for value in values if type(value) in (dict, list)]
        if not inner:
            return
        level = inner
    raise RequestError(f"The body is nested deeper than {LIMITS.json_depth_max} levels.")


def _too_large() -> HTTPException:
    return HTTPException(413, f"The body is larger than {LIMITS.request_bytes_max} bytes.")
