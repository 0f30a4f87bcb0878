"""Bodies of requests by OpenAI's and vLLM's names, one struct a route; /openapi.json shows them.

A field that is here is honoured. UNSUPPORTED lists the known ones that are not, with the values
that mean "not asked for".
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = [
    "UNSUPPORTED",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerateRequest",
    "LoadAdapterRequest",
    "StreamOptions",
    "TokenizeRequest",
    "UnloadAdapterRequest",
]

Count = Annotated[int, Meta(ge=0, lt=2**31)]
Positive = Annotated[int, Meta(ge=1, lt=2**31)]
Token = Annotated[int, Meta(ge=0, lt=2**31)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
Salt = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")]
Side = Annotated[str, Meta(pattern="^(left|right)$")]


class StreamOptions(msgspec.Struct, kw_only=True):
    """stream_options."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerateRequest(msgspec.Struct, kw_only=True):
    """What completions and chat completions share."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stream_interval: Positive | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Unit | None = None
    n: Positive | None = None
    best_of: Positive | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Token] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    logit_bias: dict[int, Bias] | None = None
    allowed_token_ids: list[Token] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    skip_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    """There is one; the name says nothing."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    truncation_side: Side | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    request_id: Name | None = None
    cache_salt: Salt | None = None
    user: str | None = None


class CompletionRequest(GenerateRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Token | str | list[Token]]
    echo: bool | None = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None


class ChatRequest(GenerateRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages through the template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Token]


class LoadAdapterRequest(msgspec.Struct, kw_only=True):
    """POST /v1/load_lora_adapter."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool | None = None
    pinned: bool | None = None
    """Whether it keeps its slot on the device, as in SGLang; null: as it is."""
    is_3d_lora_weight: bool | None = None


class UnloadAdapterRequest(msgspec.Struct, kw_only=True):
    """POST /v1/unload_lora_adapter; the id that vLLM numbers adapters with says nothing here."""

    lora_name: str = ""
    lora_int_id: int | None = None


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": (), "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True,),
    "functions": ([],), "function_call": ("none", "auto"),
    "reasoning_effort": (), "include_reasoning": (True,), "thinking_token_budget": (),
    "use_beam_search": (False,), "length_penalty": (1, 1.0), "early_stopping": (False,),
    "logprob_token_ids": (), "spaces_between_special_tokens": (True,), "prompt_embeds": (),
    "media_io_kwargs": (), "mm_processor_kwargs": (), "modalities": (["text"],), "audio": (),
    "prediction": (), "web_search_options": (), "priority": (0,), "session_id": (),
    "return_token_offsets": (False,), "return_prompt_text": (False,), "repetition_detection": (),
    "vllm_xargs": (), "kv_transfer_params": (), "ec_transfer_params": (), "mm_payload": (),
    "return_mm_kwargs": (False,), "routed_experts_prompt_start": (), "watermarking": (),
}  # fmt: skip
"""Known fields that are not supported: null and these values are taken, any other is a 400."""
