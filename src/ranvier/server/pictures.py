"""PictureDesk: the pictures of a conversation, fetched, prepared and woven into the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.media import PromptMedia
from ranvier.media.decode import decode
from ranvier.media.fetch import Fetcher
from ranvier.media.parts import Message, Render, check_texts, render_parts
from ranvier.media.process.prepared import Prepared
from ranvier.media.vision import Vision

__all__ = ["PictureDesk"]

AT_ONCE = 2
"""Pictures that are decoded at a time: each takes its pixels several times over."""
PARAM = "messages"


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
        check_texts(vision, messages)
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
        text = await asyncio.to_thread(render_parts, vision, messages, len(urls), render)
        woven = await asyncio.to_thread(vision.weave, text, prepared, encode, PARAM)
        return woven.token_ids, woven.media

    async def _prepare(self, url: str) -> Prepared:
        data = await self._fetcher.fetch(url)
        assert self._vision is not None
        processor = self._vision.processor()
        async with self._decoding:
            return await asyncio.to_thread(lambda: processor.prepare(decode(data)))
