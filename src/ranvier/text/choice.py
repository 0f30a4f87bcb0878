"""Choice: one sequence's output so far. The offline LLM and the server fill it alike.

Events in; ids, text, log-probabilities and the end out. Knows no wire format.
"""

from __future__ import annotations

from collections.abc import Sequence

from ranvier.core.errors import AdapterUnavailable, DeviceError, RequestError
from ranvier.core.request import Event, Request, TokenLogprobs
from ranvier.core.sampling import SamplingParams
from ranvier.text.codec import TextCodec
from ranvier.text.stream import Detokenizer

__all__ = ["Choice", "best_choices"]


class Choice:
    """The output of one sequence; `finish_reason` is set once it has ended."""

    def __init__(self, codec: TextCodec, request: Request) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.entries: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.logprob_sum = 0.0
        self.is_cut = False
        """A stop string has ended it: the engine does not know yet and must be told."""
        params = request.params
        self._detokenizer: Detokenizer | None = None
        if params.detokenize:
            before = codec.open_tail(request.prompt_token_ids)
            self._detokenizer = Detokenizer(codec, params, before=before)

    @property
    def logprob_mean(self) -> float:
        return self.logprob_sum / max(len(self.token_ids), 1)

    def take(self, event: Event) -> str:
        """Take an event; the new text. Nothing changes after the end.

        Raises DeviceError, AdapterUnavailable or RequestError.
        """
        if event.finish_reason == "error" and event.error_kind == "adapter":
            raise AdapterUnavailable(event.error or "The adapter can't be had.", param="model")
        if event.finish_reason == "error" and event.error_kind == "request":
            raise RequestError(event.error or "The request can't be done.")
        if event.finish_reason == "error":
            raise DeviceError(event.error or "A step failed.")
        if self.finish_reason is not None:
            return ""
        self.token_ids += event.token_ids
        for entry in event.logprobs or ():
            self.entries.append(entry)
            self.logprob_sum += entry.logprob
        text, stop = self._decode(event)
        self.text += text
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
            self.is_cut = event.finish_reason is None
        else:
            self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
        return text

    def _decode(self, event: Event) -> tuple[str, str | None]:
        """New text, and the stop string that ends it."""
        if self._detokenizer is None:
            return "", None
        # The token that ended it is no text.
        ids = event.token_ids[:-1] if event.finish_reason == "stop" else event.token_ids
        delta = self._detokenizer.feed(ids)
        if delta.stop_string is not None or event.finish_reason is None:
            return delta.text, delta.stop_string
        rest = self._detokenizer.finish()
        return delta.text + rest.text, rest.stop_string


def best_choices(choices: Sequence[Choice], params: SamplingParams) -> list[Choice]:
    """Of best_of choices the n of highest mean log-probability, best first; else all."""
    if params.best_of is None or params.best_of <= params.n:
        return list(choices)
    return sorted(choices, key=lambda choice: -choice.logprob_mean)[: params.n]
