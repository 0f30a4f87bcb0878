"""Ragged paged attention with rope and the KV write in one operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["AttentionSpec", "CacheShapes"]


@dataclass(frozen=True)
class AttentionSpec:
    """Static numbers of one model's attention: heads H, kv_heads K, head_size E.

    `out_dtype`: of products and of the output; None: the cache's own.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    eps: float
    out_dtype: Any = None


@dataclass(frozen=True)
class CacheShapes:
    """Shapes of the whole k and v caches, layer axis first, and the dtype of their elements."""

    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: Any
