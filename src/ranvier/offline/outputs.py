"""What LLM.generate returns: vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ranvier.speculate.tally import SpecDecodeMetrics

__all__ = ["CompletionOutput", "Logprob", "RequestOutput"]


@dataclass(slots=True)
class Logprob:
    """One entry of a position's log-probabilities; rank 1 is the most likely token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One generated sequence."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None
    spec_decode_metrics: SpecDecodeMetrics | None = None
    """What guessing yielded for it; None where nothing was guessed."""

    def finished(self) -> bool:
        """Whether the sequence has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One request's outputs."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False
    metrics: dict[str, Any] | None = None
    """What guessing yielded for all outputs, under "speculative_decoding", as SpecDecodeMetrics."""
    lora_request: Any = None
    num_cached_tokens: int = 0
