"""Answers by the wire's names: response structs, and log-probabilities in OpenAI's two shapes.

/openapi.json is made of these structs. UNSET fields are left out.
"""

from __future__ import annotations

import codecs
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ranvier.core.request import TokenLogprobs
from ranvier.text.codec import TextCodec

__all__ = [
    "Chat",
    "ChatChoice",
    "ChatLogprobs",
    "Chunk",
    "Completion",
    "CompletionChoice",
    "Delta",
    "DeltaChoice",
    "LogprobsWriter",
    "Message",
    "ModelCard",
    "ModelList",
    "PromptLogprob",
    "RequestMetrics",
    "Usage",
]

Ids = list[int] | UnsetType
Number = float | UnsetType | None


class Usage(msgspec.Struct):
    """Tokens of a request; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


class RequestMetrics(msgspec.Struct, kw_only=True):
    """What an answer of one sequence tells of itself, where the server was asked to."""

    time_to_first_token_ms: Number = UNSET
    generation_time_ms: Number = UNSET
    queue_time_ms: Number = UNSET
    mean_itl_ms: Number = UNSET
    tokens_per_second: Number = UNSET
    speculative_decoding: dict[str, Any] | UnsetType | None = UNSET


class PromptLogprob(msgspec.Struct):
    """One entry of prompt_logprobs."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None] | UnsetType | None


class CompletionLogprobs(msgspec.Struct):
    """logprobs of a completion; entry null is the first token of an echoed prompt."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: Ids = UNSET
    prompt_token_ids: Ids = UNSET
    prompt_logprobs: PromptLogprobs = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A completion, whole or one chunk of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    metrics: RequestMetrics | UnsetType | None = UNSET


class TopLogprob(msgspec.Struct):
    """One candidate."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """One token and the candidates beside it."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct):
    """logprobs of a chat choice."""

    content: list[ChatLogprob]


class Message(msgspec.Struct, kw_only=True):
    """The assistant's message."""

    role: str
    content: str | None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] = []
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One message."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: Ids = UNSET


class Chat(msgspec.Struct, kw_only=True):
    """A chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: Ids = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
    metrics: RequestMetrics | UnsetType | None = UNSET


class Delta(msgspec.Struct, kw_only=True):
    """What a chunk adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class DeltaChoice(msgspec.Struct, kw_only=True):
    """One choice of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: Ids = UNSET


class Chunk(msgspec.Struct, kw_only=True):
    """One chunk of a streamed chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    prompt_token_ids: Ids = UNSET
    metrics: RequestMetrics | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, kw_only=True):
    """A served model."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "ranvier"
    root: str = ""
    parent: str | None = None
    max_model_len: int = 0
    permission: list[dict[str, Any]] = []


class ModelList(msgspec.Struct, kw_only=True):
    """The served models."""

    object: str = "list"
    data: list[ModelCard]


class LogprobsWriter:
    """Log-probabilities of one choice, piece by piece; offsets go on where the last piece ended."""

    def __init__(self, codec: TextCodec, *, as_ids: bool, skips_special: bool) -> None:
        self._codec = codec
        self._as_ids = as_ids
        self._skips_special = skips_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def chat(self, entries: list[TokenLogprobs]) -> ChatLogprobs:
        """OpenAI's chat shape."""
        content = []
        for entry in entries:
            pairs = zip(entry.top_ids, entry.top_logprobs, strict=True)
            top = [TopLogprob(self._text(i), value, self._raw(i)) for i, value in pairs]
            own = entry.token_id
            content.append(ChatLogprob(self._text(own), entry.logprob, self._raw(own), top))
        return ChatLogprobs(content)

    def completion(self, ids: list[int], entries: list[TokenLogprobs | None]) -> CompletionLogprobs:
        """OpenAI's completion shape."""
        offsets = []
        for token in ids:
            offsets.append(self._at)
            data = self._codec.pieces.join([token], skip_special_tokens=self._skips_special)
            self._at += len(self._utf8.decode(data))
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[None if e is None else e.logprob for e in entries],
            tokens=[self._text(token) for token in ids],
            top_logprobs=[None if e is None else self._top(e) for e in entries],
        )

    def prompt(self, entries: list[TokenLogprobs | None]) -> list[dict[str, PromptLogprob] | None]:
        """vLLM's prompt_logprobs: the prompt's own token and the candidates, by id."""
        return [None if entry is None else self._ranked(entry) for entry in entries]

    def _ranked(self, entry: TokenLogprobs) -> dict[str, PromptLogprob]:
        own = PromptLogprob(entry.logprob, entry.rank, self._text(entry.token_id))
        found = {str(entry.token_id): own}
        pairs = zip(entry.top_ids, entry.top_logprobs, strict=True)
        for rank, (token, value) in enumerate(pairs, 1):
            found.setdefault(str(token), PromptLogprob(value, rank, self._text(token)))
        return found

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        top = {self._text(entry.token_id): entry.logprob}
        for token, value in zip(entry.top_ids, entry.top_logprobs, strict=True):
            top.setdefault(self._text(token), value)
        return top

    def _text(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self._codec.token_text(token)

    def _raw(self, token: int) -> list[int]:
        return list(self._codec.pieces[token])
