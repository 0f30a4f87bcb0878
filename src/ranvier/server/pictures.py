"""Pictures of a conversation: found among its parts, fetched, prepared, woven into the prompt.

The template says where a picture stands: it gets the parts as a list, as the families' own
templates want them, or, where it does not look at lists, the family's placeholder within the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.media import PromptMedia
from ranvier.media.decode import decode
from ranvier.media.fetch import Fetcher
from ranvier.media.process.prepared import Prepared
from ranvier.media.vision import Vision

__all__ = ["PictureDesk", "image_urls"]

AT_ONCE = 2
"""Pictures that are decoded at a time: each takes its pixels several times over."""
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


class PictureDesk:
    """The pictures of one server's requests; `images_max` of one prompt."""

    def __init__(self, vision: Vision | None, fetcher: Fetcher, images_max: int) -> None:
        self._vision = vision
        self._fetcher = fetcher
        self._images_max = images_max
        self._decoding = asyncio.Semaphore(AT_ONCE)

    @property
    def token_ids(self) -> frozenset[int]:
        """Ids that stand for pictures, also beyond the vocabulary."""
        return frozenset() if self._vision is None else self._vision.token_ids

    async def weave(
        self,
        messages: list[Message],
        urls: list[str],
        render: Render,
        encode: Callable[[str], list[int]],
    ) -> tuple[list[int], PromptMedia | None]:
        """Ids of a conversation with pictures, and the pictures. Raises RequestError."""
        vision = self._vision
        if vision is None:
            raise RequestError("This model takes no pictures.", param=PARAM)
        if len(urls) > self._images_max:
            raise RequestError(
                f"The prompt has {len(urls)} pictures; at most {self._images_max} fit.",
                param=PARAM,
                hint="The operator's limit is --limit-mm-per-prompt.",
            )
        for text in _texts(messages):
            vision.check_text(text, PARAM)
        prepared, size = [], 0
        for url in urls:
            prepared.append(await self._prepare(url))
            size += prepared[-1].values.nbytes
            if size > LIMITS.request_bytes_max - LIMITS.request_spare_bytes:
                raise RequestError(
                    f"The pictures of the prompt are more than {LIMITS.request_bytes_max} bytes "
                    "once they are prepared.",
                    param=PARAM,
                    hint="Send fewer or smaller pictures.",
                )
        text = await asyncio.to_thread(_rendered, vision, messages, len(urls), render)
        woven = await asyncio.to_thread(vision.weave, text, prepared, encode, PARAM)
        return woven.token_ids, woven.media

    async def _prepare(self, url: str) -> Prepared:
        data = await self._fetcher.fetch(url)
        assert self._vision is not None
        processor = self._vision.processor()
        async with self._decoding:
            return await asyncio.to_thread(lambda: processor.prepare(decode(data)))


def _rendered(vision: Vision, messages: list[Message], count: int, render: Render) -> str:
    """The template's text with `count` placeholders."""
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
