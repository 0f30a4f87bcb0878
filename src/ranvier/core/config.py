"""EngineConfig: what the engine may do, frozen before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.core.limits import LIMITS

__all__ = ["EngineConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Policy of one engine; the shapes are in RunnerInfo."""

    max_num_batched_tokens: int
    """Tokens of one step, at most; prompts beyond it are prefilled in chunks."""
    enable_prefix_caching: bool = True
    """Keep full blocks of finished prompts and reuse them for equal prefixes."""
    requests_waiting_max: int = LIMITS.requests_waiting_max
    """Queued requests before admission answers 503."""
    order: Literal["plain", "overlapped"] = "plain"
    """overlapped: plan and launch step n+1 before the result of step n is taken."""
