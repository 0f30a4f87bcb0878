"""PictureReader: the pictures of an LLM's prompts, from whatever form they are given in.

They are a caller's own: decoded in this process, unlike a server's. Paths are read as the caller
could, unless a folder is allowed: then below it alone, as file: URLs always are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from ranvier.core.errors import RequestError
from ranvier.media.decode import decode, read_picture
from ranvier.media.fetch import Fetcher
from ranvier.media.parts import Message, Render, check_texts, image_urls, render_parts
from ranvier.media.process.prepared import ImageProcessor
from ranvier.media.vision import Encode, Vision, WovenPrompt
from ranvier.offline.prompts import Content

__all__ = ["PictureReader"]


class PictureReader:
    """`open_vision` opens the image side for the first picture; None: the model has none."""

    def __init__(
        self,
        open_vision: Callable[[], Vision] | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._open_vision = open_vision
        self._vision: Vision | None = None
        self._fetcher = fetcher or Fetcher()

    def see(self) -> Vision:
        """The image side. Raises RequestError."""
        if self._open_vision is None:
            raise RequestError("This model takes no pictures.", param="multi_modal_data")
        self._vision = self._vision or self._open_vision()
        return self._vision

    def check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        """Raise RequestError for mm_processor_kwargs that the model cannot honour."""
        if kwargs:
            self._processor(kwargs)

    def chat_prompt(
        self, messages: list[Message], render: Render, encode: Encode, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A conversation as a prompt; the URLs of its image parts are its pictures."""
        urls = image_urls(messages)
        own: dict[str, Any]
        if not urls:
            text = render(messages)
            own = {"prompt": text, "prompt_token_ids": encode(text)}
        else:
            vision = self.see()
            check_texts(vision, messages)
            text = render_parts(vision, messages, len(urls), render)
            pictures = [decode(self._fetch(url)) for url in urls]
            own = {"prompt_token_ids": encode(text), "multi_modal_data": {"image": pictures}}
        return {**own, "mm_processor_kwargs": kwargs}

    def weave(self, prompt: Content, content: str | list[int], encode: Encode) -> WovenPrompt:
        """A prompt's ids with its pictures, prepared. Raises RequestError."""
        processor = self._processor(prompt.kwargs)
        prepared = [processor.prepare(self._read(picture)) for picture in prompt.pictures]
        return self.see().weave(content, prepared, encode, "prompt")

    def _processor(self, kwargs: Mapping[str, Any]) -> ImageProcessor:
        if kwargs and self._open_vision is None:
            name = "mm_processor_kwargs"
            raise RequestError(f"{name}: this model takes no pictures.", param=name)
        return self.see().processor(kwargs)

    def _read(self, given: object) -> Image.Image:
        if isinstance(given, (str, Path)) and self._fetcher.folder is not None:
            return decode(self._fetcher.read_path(os.path.join(os.getcwd(), given)))
        return read_picture(given)

    def _fetch(self, url: str) -> bytes:
        """In a thread of its own: the caller may run an event loop already."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._fetcher.fetch(url)).result()
