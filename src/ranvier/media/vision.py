"""Vision: the image side of one model, from pictures to what a request carries of them.

Beside text.TextCodec: that one owns strings and ids, this one pictures and where they stand. Checks
counts; the engine's limits are checked against VisionInfo (core/request).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.core.media import ImageItem, PromptMedia, VisionInfo
from ranvier.media.process.prepared import Adjustable, Configs, ImageProcessor, Prepared
from ranvier.media.process.table import find_family

__all__ = ["Vision", "WovenPrompt", "check_kwargs", "rope_axes"]

DIGEST_BYTES = 20
KWARGS = "mm_processor_kwargs"
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class WovenPrompt:
    """A prompt's ids with the placeholders of its pictures repeated, and the pictures."""

    token_ids: list[int]
    media: PromptMedia | None


class Vision:
    """One model's family, its processor and its image tokens.

    `kwargs` are the operator's mm_processor_kwargs, `info` what the encoder was compiled for.
    Raises CheckpointError, and RequestError for kwargs.
    """

    def __init__(
        self,
        configs: Configs,
        token_id: Callable[[str], int | None],
        *,
        kwargs: Mapping[str, Any] | None = None,
        info: VisionInfo | None = None,
    ) -> None:
        self.configs = configs
        self._info = info
        self.family = find_family(configs.model)
        self._processor = self.family.processor.read(configs)
        if kwargs:
            self.configs, self._processor = self._adjusted(kwargs)
        self._ids: dict[str, int] = {}
        for token in self.family.forbidden:
            found = token_id(token)
            if found is None:
                raise CheckpointError(f"tokenizer.json has no token {token!r}.")
            self._ids[token] = found

    @property
    def token_ids(self) -> frozenset[int]:
        """Ids that stand for pictures; they need not be in the model's vocabulary."""
        return frozenset(self._ids.values())

    @property
    def placeholder(self) -> str:
        """What a template writes where a picture stands."""
        return self.family.placeholder

    def processor(self, kwargs: Mapping[str, Any] | None = None) -> ImageProcessor:
        """The processor, changed by a request's mm_processor_kwargs. Raises RequestError."""
        return self._adjusted(kwargs)[1] if kwargs else self._processor

    def configs_with(self, kwargs: Mapping[str, Any]) -> Configs:
        """What the processor is read from, changed alike. Raises RequestError."""
        return self._adjusted(kwargs)[0] if kwargs else self.configs

    def _adjusted(self, kwargs: Mapping[str, Any]) -> tuple[Configs, ImageProcessor]:
        """Fields changed, and the processor that reads them. Raises RequestError.

        No picture may become more than the encoder takes, or than it became before.
        """
        known = self.family.processor.adjustable
        check_kwargs(kwargs, known)
        outranked = {field for name in kwargs for field in known[name].outranks}
        kept = {k: v for k, v in self.configs.image.items() if k not in outranked}
        configs = replace(self.configs, image={**kept, **kwargs})
        try:
            processor = self.family.processor.read(configs)
        except CheckpointError as error:
            raise RequestError(f"{KWARGS}: {error.message}", param=KWARGS) from None
        info, found = self._info, processor.units_max
        if info is not None and found > max(info.units[-1], self._processor.units_max):
            raise RequestError(
                f"{KWARGS}: a picture could become {found} {info.unit}; the encoder takes at "
                f"most {info.units[-1]}.",
                param=KWARGS,
                hint="Give smaller numbers.",
            )
        return configs, processor

    def check_text(self, text: str, param: str) -> None:
        """Raise RequestError for text of a user that spells an image token."""
        for token in self.family.forbidden:
            if token in text:
                raise RequestError(
                    f"The text holds {token!r}, which stands for a picture; send pictures as "
                    "image parts, or write it otherwise.",
                    param=param,
                )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise RequestError for a prompt without pictures that has image tokens."""
        found = self._ids.keys() if not set(self._ids.values()).isdisjoint(ids) else ()
        if found:
            raise RequestError(
                f"The prompt holds the image token {next(iter(found))!r} but no picture.",
                param=param,
            )

    def weave(
        self, prompt: str | list[int], pictures: Sequence[Prepared], encode: Encode, param: str
    ) -> WovenPrompt:
        """Put pictures where a prompt has its placeholders, in order. Raises RequestError."""
        if not pictures:
            ids = encode(prompt) if isinstance(prompt, str) else list(prompt)
            self.check_ids(ids, param)
            return WovenPrompt(ids, None)
        if isinstance(prompt, str):
            parts = prompt.split(self.placeholder)
            self._check_count(len(parts) - 1, len(pictures), param)
            texts = [parts[0]]
            for picture, part in zip(pictures, parts[1:], strict=True):
                texts += (picture.text, part)
            ids = encode("".join(texts))
        else:
            ids = self._spread(prompt, pictures, encode, param)
        return self._repeat(ids, pictures, param)

    def _spread(
        self, prompt: list[int], pictures: Sequence[Prepared], encode: Encode, param: str
    ) -> list[int]:
        """Ids with each placeholder replaced by the ids of its picture's text."""
        mark = self._ids[self.placeholder]
        self._check_count(prompt.count(mark), len(pictures), param)
        ids, left = [], iter(pictures)
        for token in prompt:
            ids += encode(next(left).text) if token == mark else [token]
        return ids

    def _repeat(self, ids: list[int], pictures: Sequence[Prepared], param: str) -> WovenPrompt:
        """Each run at its full length, and where the pictures' runs came to stand."""
        feature = self._ids[self.family.feature]
        runs = [run for picture in pictures for run in picture.runs]
        self._check_count(ids.count(feature), len(runs), param)
        whole: list[int] = []
        spans: list[tuple[int, int]] = []
        for token in ids:
            if token == feature:
                run = runs[len(spans)]
                spans.append((len(whole), run))
                whole += [feature] * run
            else:
                whole.append(token)
        left = iter(spans)
        items = tuple(
            _item(picture, tuple(next(left) for _ in picture.runs)) for picture in pictures
        )
        if not self.family.has_rope_axes:
            return WovenPrompt(whole, PromptMedia(images=items))
        rope, delta = rope_axes(len(whole), items)
        return WovenPrompt(whole, PromptMedia(images=items, rope=rope, rope_delta=delta))

    def _check_count(self, found: int, wanted: int, param: str) -> None:
        if found != wanted:
            raise RequestError(
                f"The prompt has {found} image placeholders; its pictures need {wanted}.",
                param=param,
                hint=f"Write {self.placeholder!r} once for each picture, and nowhere else.",
            )


def check_kwargs(kwargs: Mapping[str, Any], known: Mapping[str, Adjustable]) -> None:
    """Raise RequestError for a name that is not known, also within a field."""
    for name, value in kwargs.items():
        _check_name(name, known)
        keys = known[name].keys
        if keys and not isinstance(value, Mapping):
            raise RequestError(
                f"{KWARGS}: {name} must be an object of {', '.join(keys)}.", param=KWARGS
            )
        for key in value if keys else ():
            _check_name(key, keys, f" of {name}")


def _check_name(name: Any, known: Iterable[str], where: str = "") -> None:
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    told = f"Did you mean {near[0]}? " if near else ""
    raise RequestError(
        f"{KWARGS}: {str(name)[:64]!r}{where} is not supported for this model; known: "
        f"{', '.join(names) or 'none'}.",
        param=KWARGS,
        hint=f"{told}Pictures are else prepared as the model's own processor says.",
    )


def _item(picture: Prepared, spans: tuple[tuple[int, int], ...]) -> ImageItem:
    pixels = picture.values.tobytes()
    facts = repr((picture.values.shape, picture.grid, picture.size)).encode()
    digest = hashlib.blake2b(facts, digest_size=DIGEST_BYTES)
    digest.update(pixels)
    return ImageItem(
        digest=digest.digest(),
        pixels=pixels,
        shape=picture.values.shape,
        grid=picture.grid,
        size=picture.size,
        spans=spans,
    )


def rope_axes(length: int, items: Sequence[ImageItem]) -> tuple[bytes, int]:
    """(int32 [3, length] as bytes, delta): a picture's features lie in a grid of its own.

    Source: M-RoPE of Qwen2-VL. Text counts on behind the longer side of the last grid.
    """
    axes = np.empty((3, length), np.int32)
    at = position = 0
    for item in items:
        start, count = item.spans[0]
        axes[:, at:start] = np.arange(position, position + start - at)
        position += start - at
        rows, columns = _merged(item.grid, count)
        axes[0, start : start + count] = position
        axes[1, start : start + count] = position + np.repeat(np.arange(rows), columns)
        axes[2, start : start + count] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        at = start + count
    axes[:, at:] = np.arange(position, position + length - at)
    return axes.tobytes(), position - at


def _merged(grid: tuple[int, int, int], count: int) -> tuple[int, int]:
    """Rows and columns of features: of patches, merged in squares."""
    merge = round((grid[1] * grid[2] / count) ** 0.5)
    return grid[1] // merge, grid[2] // merge
