"""/openapi.json, generated from the route table and the structs of its bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ranvier.server.http.errors import ErrorBody
from ranvier.version import __version__

__all__ = ["RouteRow", "openapi"]

REFS = "#/components/schemas/{name}"


class RouteRow(NamedTuple):
    """One route: what serves it, and the types of its bodies."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    body: type[Any] | None = None
    answer: type[Any] | None = None


def openapi(
    rows: Iterable[RouteRow], *, has_keys: bool, open_paths: Iterable[str]
) -> dict[str, Any]:
    """The document."""
    rows = list(rows)
    structs: set[type[Any]] = {k for row in rows for k in (row.body, row.answer) if k is not None}
    ordered: list[type[Any]] = sorted({*structs, ErrorBody}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REFS)
    by_type = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        operation = _operation(row, by_type)
        if has_keys and row.path not in open_paths:
            operation["security"] = [{"bearer": []}]
        paths.setdefault(row.path.replace(":path", ""), {})[row.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ranvier", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(row: RouteRow, by_type: dict[type[Any], Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Success."}
    if row.answer is not None:
        answer["content"] = {"application/json": {"schema": by_type[row.answer]}}
    error = {"application/json": {"schema": by_type[ErrorBody]}}
    found: dict[str, Any] = {
        "summary": row.summary,
        "responses": {"200": answer, "default": {"description": "Error.", "content": error}},
    }
    if "{name" in row.path:
        field = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        found["parameters"] = [field]
    if row.body is not None:
        content = {"application/json": {"schema": by_type[row.body]}}
        found["requestBody"] = {"required": True, "content": content}
    return found
