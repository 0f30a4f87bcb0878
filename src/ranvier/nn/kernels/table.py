"""Which functions serve a target: the one place that chooses kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from ranvier.core.errors import TargetError
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.attention import reference as attention_reference
from ranvier.nn.kernels.embed import reference as embed_reference
from ranvier.nn.kernels.linear import reference as linear_reference
from ranvier.nn.kernels.norm import reference as norm_reference
from ranvier.nn.kernels.sample import reference as sample_reference

__all__ = ["CacheShapes", "Kernels", "select"]


@dataclass(frozen=True)
class CacheShapes:
    """Shapes of the whole k and v caches, layer axis first."""

    k: tuple[int, ...]
    v: tuple[int, ...]


@dataclass(frozen=True)
class Kernels:
    """One target's functions; see ARCHITECTURE.md for their signatures."""

    name: str
    linear: Callable[..., Array]
    rms_norm: Callable[..., Array]
    embed: Callable[..., Array]
    attention: Callable[..., tuple[Array, Array, Array]]
    sample: Callable[..., Array]
    cache_shapes: Callable[[int, AttentionSpec, int, int, Any], CacheShapes]


def _reference_shapes(
    layers: int, spec: AttentionSpec, blocks: int, block_tokens: int, dtype: Any
) -> CacheShapes:
    del dtype
    shape = (layers, blocks, block_tokens, spec.kv_heads, spec.head_size)
    return CacheShapes(shape, shape)


REFERENCE = Kernels(
    name="reference",
    linear=linear_reference.linear,
    rms_norm=norm_reference.rms_norm,
    embed=embed_reference.embed,
    attention=attention_reference.attention,
    sample=sample_reference.sample,
    cache_shapes=_reference_shapes,
)

TABLE = {"reference": REFERENCE}


def select(name: str) -> Kernels:
    """The kernels of a name in TABLE. Raises TargetError."""
    if name not in TABLE:
        raise TargetError(f"There are no kernels named {name!r}; there are: {', '.join(TABLE)}.")
    return TABLE[name]
