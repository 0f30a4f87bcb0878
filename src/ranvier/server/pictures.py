"""PictureDesk: the pictures of a conversation, fetched, prepared and woven into the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ranvier.core.errors import CapacityError, RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.media import PromptMedia
from ranvier.media.fetch import Fetcher
from ranvier.media.parts import Message, Render, check_texts, image_urls, render_parts
from ranvier.media.process.prepared import Configs, Prepared
from ranvier.media.vision import Vision
from ranvier.media.worker import PictureProcess

__all__ = ["Conversation", "PictureDesk"]

DECODED_AT_ONCE = 2
"""Processes; each takes its pixels several times over."""
FETCHED_AT_ONCE = 8
"""Each may be as large as a picture may be sent; those that lie in a request's body are there."""
PARAM = "messages"


@dataclass(frozen=True)
class Conversation:
    """Messages, and how its pictures are prepared."""

    messages: list[Message]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The request's mm_processor_kwargs."""

    @property
    def urls(self) -> list[str]:
        """Of its pictures, in order. Raises RequestError."""
        return image_urls(self.messages)


class PictureDesk:
    """The pictures of one server's requests; `images_max` of one prompt."""

    def __init__(
        self,
        vision: Vision | None = None,
        fetcher: Fetcher | None = None,
        images_max: int = 0,
        *,
        limit_s: float = LIMITS.image_prepare_s,
    ) -> None:
        self._vision = vision
        self._fetcher = fetcher or Fetcher()
        self._images_max = images_max
        self._idle = [PictureProcess(limit_s=limit_s) for _ in range(DECODED_AT_ONCE)]
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._held_bytes = 0

    def start(self) -> None:
        """Start the processes ahead of the first picture."""
        for process in self._idle if self._vision else ():
            process.start()

    def close(self) -> None:
        """End the processes that nobody waits for."""
        for process in self._idle:
            process.close()

    @property
    def token_ids(self) -> frozenset[int]:
        """Ids that stand for pictures, also beyond the vocabulary."""
        return frozenset() if self._vision is None else self._vision.token_ids

    def check(self, kwargs: Mapping[str, Any]) -> None:
        """Raise RequestError for mm_processor_kwargs that this model cannot honour."""
        self._configs(kwargs)

    async def weave(
        self,
        given: Conversation,
        render: Render,
        encode: Callable[[str], list[int]],
        held: ExitStack,
    ) -> tuple[list[int], PromptMedia | None]:
        """Ids of a conversation with pictures, and the pictures, which count until `held` is left.

        Raises RequestError, and CapacityError while others' pictures leave no room.
        """
        configs, urls = self._configs(given.kwargs), given.urls
        vision = self._vision
        assert vision is not None
        if len(urls) > self._images_max:
            raise RequestError(
                f"The prompt has {len(urls)} pictures; at most {self._images_max} fit.",
                param=PARAM,
                hint="The operator's limit is --limit-mm-per-prompt.",
            )
        check_texts(vision, given.messages)
        prepared = await self._prepare_all(urls, configs, held)
        text = await asyncio.to_thread(render_parts, vision, given.messages, len(urls), render)
        woven = await asyncio.to_thread(vision.weave, text, prepared, encode, PARAM)
        return woven.token_ids, woven.media

    def _configs(self, kwargs: Mapping[str, Any]) -> Configs:
        """Raises RequestError, also where the model takes no pictures."""
        if self._vision is None:
            raise RequestError("This model takes no pictures.", param=PARAM)
        return self._vision.configs_with(kwargs)

    async def _prepare_all(
        self, urls: Sequence[str], configs: Configs, held: ExitStack
    ) -> list[Prepared]:
        prepared, size = [], 0
        for url in urls:
            prepared.append(await self._prepare(url, configs))
            size += self._hold(prepared[-1].values.nbytes, held)
            if size > LIMITS.request_bytes_max - LIMITS.request_spare_bytes:
                raise RequestError(
                    f"The pictures of the prompt are more than {LIMITS.request_bytes_max} bytes "
                    "once they are prepared.",
                    param=PARAM,
                    hint="Send fewer or smaller pictures.",
                )
        return prepared

    async def _prepare(self, url: str, configs: Configs) -> Prepared:
        if url[:5].lower() == "data:":
            return await self._read(await self._fetcher.fetch(url), configs)
        async with self._fetching:
            return await self._read(await self._fetcher.fetch(url), configs)

    async def _read(self, data: bytes, configs: Configs) -> Prepared:
        async with self._decoding:
            process = self._idle.pop()
            try:
                return await asyncio.to_thread(process.prepare, configs, data)
            finally:
                self._idle.append(process)

    def _hold(self, size: int, held: ExitStack) -> int:
        """Count bytes of a prepared picture. Raises CapacityError when they are too many."""
        if self._held_bytes + size > LIMITS.images_bytes_max:
            raise CapacityError(
                f"The pictures of open requests would take more than {LIMITS.images_bytes_max} "
                "bytes.",
                hint="Try again later.",
            )
        self._held_bytes += size
        held.callback(self._release, size)
        return size

    def _release(self, size: int) -> None:
        self._held_bytes -= size
