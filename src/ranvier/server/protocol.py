"""Bodies of requests, by OpenAI's and vLLM's names; one struct a route, unknown fields reported.

A known field that can't be honoured is refused by name; an unknown one is listed in a response
header, or refused under --strict-params.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.sampling import SamplingParams

__all__ = ["ChatRequest", "CompletionRequest", "decode_body", "sampling_params"]


class StreamOptions(msgspec.Struct, kw_only=True):
    """stream_options."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    return_tokens_as_token_ids: bool = False
    user: str | None = None


class CompletionRequest(_Common, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str | list[int]]
    echo: bool = False
    logprobs: int | None = None
    suffix: str | None = None


class ChatRequest(_Common, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None


UNSUPPORTED = ("suffix", "tools", "response_format", "structured_outputs", "use_beam_search")
PLAIN = {"none", "auto", "text"}


def decode_body(body: bytes, kind: type[Any], *, is_strict: bool) -> tuple[Any, list[str]]:
    """(request, names of unknown fields). Raises RequestError with the field's name."""
    try:
        fields = msgspec.json.decode(body)
        request = msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".").split("[")[0]
        raise RequestError(f"{field or 'body'}: {message}.", param=field or None) from None
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise RequestError("The body is not valid JSON.") from None
    for name in UNSUPPORTED:
        value = fields.get(name)
        is_plain = isinstance(value, dict) and value.get("type") in PLAIN
        if value and not is_plain:
            raise RequestError(f"{name} is not supported yet.", param=name)
    unknown = sorted(set(fields) - set(kind.__struct_fields__) - set(UNSUPPORTED))
    if unknown and is_strict:
        raise RequestError(f"Unknown fields: {', '.join(unknown)}.", param=unknown[0])
    return request, unknown


def sampling_params(
    request: _Common, defaults: SamplingParams, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """The request's parameters over the model's defaults. Raises RequestError."""
    fields = {name: getattr(defaults, name) for name in SamplingParams.__struct_fields__}
    for name in fields:
        value = getattr(request, name, None)
        if value is not None and name not in ("logprobs", "max_tokens"):
            fields[name] = value
    fields.update(max_tokens=max_tokens, logprobs=logprobs)
    return SamplingParams(**fields)
