"""Image parts of conversations: which pictures they name, and how a template sees them.

The template says where a picture stands: it gets the parts as a list, as the families' own
templates want them, or, where it does not look at lists, the family's placeholder within the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranvier.core.errors import RequestError
from ranvier.media.vision import Vision

__all__ = ["Message", "Render", "check_texts", "image_urls", "render_parts"]

DETAILS = ("auto", "low", "high")
PARAM = "messages"

Message = dict[str, Any]
Render = Callable[[list[Message]], str]


def image_urls(messages: list[Message]) -> list[str]:
    """The URLs of all image parts, in order. Raises RequestError for a malformed one."""
    found = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                found.append(_url(part))
    return found


def render_parts(vision: Vision, messages: list[Message], count: int, render: Render) -> str:
    """The template's text with `count` placeholders. Raises RequestError."""
    text = render([_as_list(message) for message in messages])
    if text.count(vision.placeholder) == count:
        return text
    return render([_as_text(message, vision.placeholder) for message in messages])


def _as_list(message: Message) -> Message:
    """A message as templates of vision models want it: parts of type image and text."""
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": content or ""}
    parts = [
        {"type": "image"} if _is_image(part) else {"type": "text", "text": _text(part)}
        for part in content
    ]
    return {**message, "content": parts}


def _as_text(message: Message, placeholder: str) -> Message:
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": content or ""}
    parts = [placeholder if _is_image(part) else _text(part) for part in content]
    return {**message, "content": "".join(parts)}


def check_texts(vision: Vision, messages: list[Message]) -> None:
    """Raise RequestError for a text of a user that spells an image token."""
    for text in _texts(messages):
        vision.check_text(text, PARAM)


def _texts(messages: list[Message]) -> list[str]:
    """Everything that a user wrote."""
    found = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        found += [_text(part) for part in parts if not _is_image(part)]
    return found


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RequestError(f"Content of type {str(kind)[:64]!r} is not supported.", param=PARAM)
    return str(part.get("text", ""))


def _url(part: dict[str, Any]) -> str:
    given = part.get("image_url")
    detail = None
    if isinstance(given, dict):
        detail, given = given.get("detail"), given.get("url")
    if detail is not None and detail not in DETAILS:
        raise RequestError(f"detail is {str(detail)[:32]!r}; known: auto, low, high.", param=PARAM)
    if not isinstance(given, str) or not given:
        raise RequestError("An image part needs image_url with a url.", param=PARAM)
    return given
