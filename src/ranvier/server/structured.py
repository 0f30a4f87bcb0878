"""Structured outputs of a body: response_format, structured_outputs, and the older guided_*."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.sampling import SamplingParams
from ranvier.core.structured import StructuredOutputsParams
from ranvier.server.wire.requests import GenerateRequest
from ranvier.text.grammar_worker import GrammarProcess

__all__ = ["GrammarDesk", "asked_structure"]

GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
          "guided_grammar": "grammar"}  # fmt: skip


class GrammarDesk:
    """Reads grammars of strangers in a process of their own before an engine does."""

    def __init__(self) -> None:
        self._process = GrammarProcess()

    async def check(self, params: SamplingParams) -> SamplingParams:
        """The same parameters. Raises RequestError for a grammar that is wrong."""
        if params.structured_outputs is not None:
            await asyncio.to_thread(self._process.check, params.structured_outputs)
        return params

    def close(self) -> None:
        """End the process."""
        self._process.close()


def asked_structure(body: GenerateRequest) -> StructuredOutputsParams | None:
    """What a body asks for, by whichever name. Raises RequestError, also for two at once."""
    found: dict[str, StructuredOutputsParams] = {}
    fields = _of_format(body.response_format)
    if fields is not None:
        found["response_format"] = _params(fields, "response_format")
    if body.structured_outputs is not None:
        found["structured_outputs"] = _params(body.structured_outputs, "structured_outputs")
    for name, kind in GUIDED.items():
        value = getattr(body, name)
        if value is not None:
            pattern = body.guided_whitespace_pattern
            extra = {"whitespace_pattern": pattern} if pattern and kind == "json" else {}
            found[name] = _params({kind: value, **extra}, name)
    if len(found) > 1:
        raise RequestError(f"{' and '.join(found)} exclude each other.", param=list(found)[-1])
    return next(iter(found.values()), None)


def _of_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Fields of StructuredOutputsParams for a response_format; None: any text."""
    if given is None:
        return None
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        held = given.get("json_schema")
        schema = held.get("schema") if isinstance(held, dict) else None
        if not isinstance(schema, dict):
            raise RequestError(
                "response_format: json_schema.schema must be a JSON Schema.",
                param="response_format",
            )
        return {"json": schema}
    raise RequestError(
        f"response_format: type {str(kind)[:64]!r} is not supported; known: text, json_object, "
        "json_schema.",
        param="response_format",
    )


def _params(fields: dict[str, Any], name: str) -> StructuredOutputsParams:
    try:
        return msgspec.convert(fields, StructuredOutputsParams)
    except msgspec.ValidationError as error:
        raise RequestError(f"{name}: {error}.", param=name) from None
    except RequestError as error:
        raise RequestError(
            f"{name}: {error.message.removeprefix('structured_outputs: ')}", param=name
        ) from None
