"""The forms of a prompt that vLLM takes, reduced to text or token ids. Raises RequestError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ranvier.core.errors import RequestError

__all__ = ["Content", "Prompt", "read_prompts"]

Prompt = str | Mapping[str, Any] | Sequence[int]
"""Text, token ids, {"prompt": text}, {"prompt_token_ids": ids}, each with "cache_salt" or not."""

REFUSED = {
    "multi_modal_uuids": "pictures are told apart by their content",
    "prompt_embeds": "prompts are text or token ids",
    "encoder_prompt": "encoder-decoder models are not served",
    "decoder_prompt": "encoder-decoder models are not served",
    "type": "use {'prompt': text} or {'prompt_token_ids': ids}",
}


@dataclass(frozen=True)
class Content:
    """What one prompt says: its text, or its token ids (with the text they came from, if told)."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str = ""
    pictures: tuple[Any, ...] = ()
    """As they were given: Pillow's, arrays of numpy, or paths."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """mm_processor_kwargs: how they are prepared."""


def read_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Content]:
    """One prompt or several; a flat list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [_content(prompts)]
    if not isinstance(prompts, Sequence):
        raise _wrong(prompts)
    if prompts and type(prompts[0]) is int:
        return [_content(prompts)]  # type: ignore[arg-type]
    return [_content(prompt) for prompt in prompts]  # type: ignore[arg-type]


def _content(prompt: Prompt) -> Content:
    if isinstance(prompt, str):
        return Content(prompt, None)
    if isinstance(prompt, Mapping):
        return _from_fields(dict(prompt))
    if isinstance(prompt, (list, tuple)):
        return Content(None, list(prompt))
    raise _wrong(prompt)


def _from_fields(fields: dict[str, Any]) -> Content:
    text, ids = fields.pop("prompt", None), fields.pop("prompt_token_ids", None)
    salt, pictures = fields.pop("cache_salt", None), _pictures(fields.pop("multi_modal_data", None))
    kwargs = fields.pop("mm_processor_kwargs", None) or {}
    for name, value in fields.items():
        if name in REFUSED and value is None:
            continue
        reason = REFUSED.get(
            name,
            "known are prompt, prompt_token_ids, multi_modal_data, mm_processor_kwargs and "
            "cache_salt",
        )
        raise RequestError(f"A prompt's field {name!r} is not supported: {reason}.", param=name)
    if text is None and ids is None:
        raise RequestError("A prompt needs prompt or prompt_token_ids.", param="prompt")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"prompt must be text, is {type(text).__name__}.", param="prompt")
    if ids is not None and (isinstance(ids, str) or not isinstance(ids, Sequence)):
        raise RequestError("prompt_token_ids must be a list of ids.", param="prompt_token_ids")
    if salt is not None and not isinstance(salt, str):
        raise RequestError("cache_salt must be text.", param="cache_salt")
    if not isinstance(kwargs, Mapping):
        raise RequestError("mm_processor_kwargs must be a dict.", param="mm_processor_kwargs")
    return Content(text, None if ids is None else list(ids), salt or "", pictures, kwargs)


def _pictures(data: Any) -> tuple[Any, ...]:
    """Of {"image": picture or list of pictures}."""
    if data is None:
        return ()
    if not isinstance(data, Mapping) or set(data) - {"image"}:
        raise RequestError(
            'multi_modal_data must be {"image": picture or list of pictures}.',
            param="multi_modal_data",
        )
    given = data.get("image", ())
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def _wrong(prompt: object) -> RequestError:
    return RequestError(
        f"A prompt is text, a list of token ids or a dict; got {type(prompt).__name__}.",
        param="prompt",
    )
