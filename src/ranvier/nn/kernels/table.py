"""Which functions serve a target: the one place that chooses kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jax import Array

from ranvier.core.errors import TargetError
from ranvier.nn.kernels.attention import CacheShapes
from ranvier.nn.kernels.attention import cpu as attention_cpu
from ranvier.nn.kernels.attention import reference as attention_reference
from ranvier.nn.kernels.embed import cpu as embed_cpu
from ranvier.nn.kernels.embed import reference as embed_reference
from ranvier.nn.kernels.linear import cpu as linear_cpu
from ranvier.nn.kernels.linear import reference as linear_reference
from ranvier.nn.kernels.norm import cpu as norm_cpu
from ranvier.nn.kernels.norm import reference as norm_reference
from ranvier.nn.kernels.sample import cpu as sample_cpu
from ranvier.nn.kernels.sample import reference as sample_reference

__all__ = ["CacheShapes", "Kernels", "select"]


@dataclass(frozen=True)
class Kernels:
    """One target's functions; see ARCHITECTURE.md for their signatures."""

    name: str
    linear: Callable[..., Array]
    rms_norm: Callable[..., Array]
    embed: Callable[..., Array]
    attention: Callable[..., tuple[Array, Array, Array]]
    sample: Callable[..., Array]
    cache_shapes: Callable[..., CacheShapes]


REFERENCE = Kernels(
    name="reference",
    linear=linear_reference.linear,
    rms_norm=norm_reference.rms_norm,
    embed=embed_reference.embed,
    attention=attention_reference.attention,
    sample=sample_reference.sample,
    cache_shapes=attention_reference.cache_shapes,
)

CPU = Kernels(
    name="cpu",
    linear=linear_cpu.linear,
    rms_norm=norm_cpu.rms_norm,
    embed=embed_cpu.embed,
    attention=attention_cpu.attention,
    sample=sample_cpu.sample,
    cache_shapes=attention_cpu.cache_shapes,
)

TABLE = {"reference": REFERENCE, "cpu": CPU}


def select(name: str) -> Kernels:
    """The kernels of a name in TABLE. Raises TargetError."""
    if name not in TABLE:
        raise TargetError(f"There are no kernels named {name!r}; there are: {', '.join(TABLE)}.")
    return TABLE[name]
