"""One choice of a response: events in, text and log-probabilities out, by the wire's names."""

from __future__ import annotations

from typing import Any

from ranvier.core.request import Event, Request, TokenLogprobs
from ranvier.text.codec import TextCodec
from ranvier.text.stream import Detokenizer

__all__ = ["Choice", "chat_logprobs", "completion_logprobs"]


class Choice:
    """The state of one sequence on its way to the wire; `index` is the choice's number."""

    def __init__(self, codec: TextCodec, request: Request, index: int) -> None:
        self.index = index
        self.text = ""
        self.token_ids: list[int] = []
        self.entries: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.logprob_sum = 0.0
        self._detokenizer = Detokenizer(codec, request.params)

    def take(self, event: Event) -> str:
        """Take an event; the new text. Sets finish_reason when the choice has ended."""
        if self.finish_reason is not None:
            return ""
        self.token_ids += event.token_ids
        self.entries += event.logprobs or ()
        self.logprob_sum += sum(entry.logprob for entry in event.logprobs or ())
        ids = event.token_ids[:-1] if event.finish_reason == "stop" else event.token_ids
        delta = self._detokenizer.feed(ids)
        text = delta.text
        if delta.stop_string is None and event.finish_reason is not None:
            delta = self._detokenizer.finish()
            text += delta.text
        self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
        if delta.stop_string is not None:
            self.finish_reason, self.stop_reason = "stop", delta.stop_string
        self.text += text
        return text


def chat_logprobs(codec: TextCodec, entries: list[TokenLogprobs]) -> dict[str, Any]:
    """logprobs of a chat choice."""
    content = []
    for entry in entries:
        top = zip(entry.top_ids, entry.top_logprobs, strict=True)
        content.append(
            {
                **_token(codec, entry.token_id, entry.logprob),
                "top_logprobs": [_token(codec, token, value) for token, value in top],
            }
        )
    return {"content": content}


def completion_logprobs(
    codec: TextCodec, entries: list[TokenLogprobs | None], ids: list[int], start: int
) -> dict[str, Any]:
    """logprobs of a completion choice; entry None is the first token of an echoed prompt."""
    tokens = [codec.token_text(token) for token in ids]
    offsets, at = [], start
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "text_offset": offsets,
        "tokens": tokens,
        "token_logprobs": [None if e is None else e.logprob for e in entries],
        "top_logprobs": [None if e is None else _top(codec, e) for e in entries],
    }


def _top(codec: TextCodec, entry: TokenLogprobs) -> dict[str, float]:
    top = {codec.token_text(entry.token_id): entry.logprob}
    for token, value in zip(entry.top_ids, entry.top_logprobs, strict=True):
        top.setdefault(codec.token_text(token), value)
    return top


def _token(codec: TextCodec, token: int, logprob: float) -> dict[str, Any]:
    text = codec.token_text(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
