"""What crosses between server and engine: requests in, events out. Declared types, msgpack-ready.

The text layer has already turned strings into ids: the engine never sees text. Every sequence of
every admitted request ends in exactly one event whose `finish_reason` is set.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.media import PromptMedia
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo

__all__ = [
    "EngineStats",
    "ErrorKind",
    "Event",
    "FinishReason",
    "Request",
    "TokenLogprobs",
    "check_fits",
]

FinishReason = Literal["stop", "length", "abort", "error"]
ErrorKind = Literal["device", "adapter", "request"]
"""A step failed; the sequence's adapter can't be had; or what it asks for can't be done."""


class Request(msgspec.Struct, kw_only=True):
    """One prompt and what to do with it. `params.sequence_count` sequences are generated.

    `end_token_ids` end a sequence unless params.ignore_eos; params.stop_token_ids always do.
    `bad_word_ids` are the token sequences never produced. `seed` is never None here: the edge
    draws one when the user gave none. `media` are the pictures whose placeholders the prompt holds.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    end_token_ids: list[int] = []
    bad_word_ids: list[list[int]] = []
    priority: int = 0
    cache_salt: str = ""
    media: PromptMedia | None = None
    adapter: str = ""
    """Name of a LoRA adapter; empty: the base model."""


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probabilities at one position: the token's own, its rank (1 is best), the top ones."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class Event(msgspec.Struct, kw_only=True, array_like=True):
    """News of one sequence: new tokens, or its end, or both.

    `index` is the sequence within the request. `prompt_logprobs` comes once, with the first event
    of sequence 0; its first entry is None. `stop_reason` is the stop token id that ended it, None
    for an end token. `error` is set with finish_reason "error", and `error_kind` says whose it is.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    error: str | None = None
    error_kind: ErrorKind = "device"
    queue_s: float = 0.0
    guesses: tuple[int, int, int] = (0, 0, 0)
    """Of the sequence so far: drafts verified, tokens guessed, tokens that stood."""


class EngineStats(msgspec.Struct, kw_only=True):
    """Counters since start (suffix-free) and gauges of now; the server turns them into metrics."""

    requests_running: int = 0
    requests_waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    mm_queries: int = 0
    mm_hits: int = 0
    steps: int = 0
    padding_tokens: int = 0
    compiles_after_ready: int = 0
    drafts: int = 0
    """Times that a sequence's drafts were verified."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: list[int] = []
    step_tokens: list[int] = []
    host_ms_p50: float = 0.0
    adapters_running: list[str] = []
    adapters_waiting: list[str] = []
    adapter_hits: int = 0
    adapter_misses: int = 0
    adapter_load_s: list[float] = []
    adapter_names: int = 0
    adapter_host_bytes: int = 0


def check_fits(request: Request, info: RunnerInfo, *, param: str = "prompt") -> None:
    """Raise RequestError for an empty prompt and for one that does not fit; `param` names it."""
    length, limit = len(request.prompt_token_ids), info.model_len_max
    if not length:
        raise RequestError("The prompt is empty.", param=param)
    needs_room = request.params.max_tokens != 0
    if length + needs_room > limit:
        raise RequestError(
            f"The prompt has {length} tokens; at most {limit - needs_room} fit into the "
            f"model's length of {limit}.",
            param=param,
            hint="Shorten it, or set truncate_prompt_tokens.",
        )
    longest = min(length + (request.params.max_tokens or 1), limit)
    needed, total = -(-longest // info.block_tokens), info.block_count - 1
    if needed > total:
        raise RequestError(
            f"The request may need {needed} KV blocks; there are {total}.", param="max_tokens"
        )
