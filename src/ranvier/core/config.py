"""EngineConfig: what the engine may do, frozen before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.core.limits import LIMITS

__all__ = ["EngineConfig", "Method", "SpeculationConfig"]

Method = Literal["ngram", "draft_model", "eagle", "eagle3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationConfig:
    """How tokens are guessed; how many at most is in the buckets."""

    method: Method
    """ngram guesses on the host, the others in the step's own program."""
    lookup_min: int = 2
    """ngram: tokens of the shortest end that is looked up in what came before."""
    lookup_max: int = 5
    """ngram: of the longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Policy of one engine; the shapes are in RunnerInfo."""

    max_num_batched_tokens: int
    """Tokens of one step, at most; prompts beyond it are prefilled in chunks."""
    enable_prefix_caching: bool = True
    """Keep full blocks of finished prompts and reuse them for equal prefixes."""
    requests_waiting_max: int = LIMITS.requests_waiting_max
    """Queued requests before admission answers 503."""
    adapter_eviction: Literal["lru", "lfu"] = "lru"
    """Which idle adapter leaves its slot: the one unused for longest, or the one least used."""
    adapter_decay_uses: int = 128
    """lfu: uses after which every count is halved."""
    order: Literal["plain", "overlapped"] = "plain"
    """overlapped: plan and launch step n+1 before the result of step n is taken."""
    speculation: SpeculationConfig | None = None
    """None: every token comes from a step of its own."""
