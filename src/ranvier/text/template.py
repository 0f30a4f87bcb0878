"""Chat templates: Hugging Face's Jinja dialect in an immutable sandbox, with bounds.

A template is data from a model's author: it can't reach attributes, files or imports, can't loop
beyond RANGE_MAX, and its output is bounded.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ranvier.core.errors import RequestError

__all__ = ["ChatTemplate"]

RANGE_MAX = 100_000
OUTPUT_CHARS_MAX = 16 * 2**20


class ChatTemplate:
    """One compiled template. Raises RequestError where it does not parse or does not render."""

    def __init__(self, source: str, special_tokens: dict[str, str | None]) -> None:
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(
            raise_exception=_raise, strftime_now=_now, range=_bounded_range, **special_tokens
        )
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(
                f"The chat template does not parse: line {error.lineno}: {error.message}.",
                param="chat_template",
            ) from None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> str:
        """The prompt text of a conversation."""
        reserved = {"messages", "add_generation_prompt", "tokenize", "chat_template"} & set(
            variables
        )
        if reserved:
            raise RequestError(
                f"chat_template_kwargs may not set {', '.join(sorted(reserved))}.",
                param="chat_template_kwargs",
            )
        fields = {"tools": None, "documents": None, **variables}
        size, parts = 0, []
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **fields
            ):
                size += len(part)
                if size > OUTPUT_CHARS_MAX:
                    raise OverflowError(f"its output is over {OUTPUT_CHARS_MAX} characters")
                parts.append(part)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"The chat template refuses these messages: {error}.", param="messages"
            ) from None
        return "".join(parts)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _bounded_range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > RANGE_MAX:
        raise OverflowError(f"range of {len(found)} is over {RANGE_MAX}")
    return found
