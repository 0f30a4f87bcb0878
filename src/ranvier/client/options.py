"""Options of the clients of a running server: where it is, what to ask of each token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["ClientOptions", "SamplingOptions"]


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Where the server is and how its answers are shown, by vLLM's names."""

    url: str = "http://127.0.0.1:8000/v1"
    """Address of the server's /v1."""
    model_name: str | None = None
    """Model to ask; default the first that the server lists."""
    api_key: str | None = None
    """Key of the server; default OPENAI_API_KEY."""
    stats: bool = False
    """Print the time to the first token and tokens per second after each answer."""
    max_tokens: int | None = None
    """Tokens of an answer, at most; default the server's own."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    seed: int | None = None
    """Seed of the draws; default a new one for each answer."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling of a request; what is not given is the server's default."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Share of the probability mass to draw from."""
    top_k: int | None = None
    """How many of the likeliest tokens to draw from."""
    min_p: float | None = None
    """Least probability, relative to the likeliest token's."""
    frequency_penalty: float | None = None
    """Penalty for each earlier occurrence of a token."""
    presence_penalty: float | None = None
    """Penalty for tokens that have occurred."""
    repetition_penalty: float | None = None
    """Factor against tokens of prompt and answer."""

    @property
    def fields(self) -> dict[str, Any]:
        """What was given, by the names of a request."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
