"""AdamW with a warm-up and a cosine: a few lines instead of a dependency.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Adam", "Moments"]

DECAYS = (0.9, 0.95)
NORM_MAX = 1.0
EPSILON = 1e-8


class Moments(NamedTuple):
    """Running means of gradients and of their squares, in the shape of the params."""

    first: Any
    second: Any


@dataclass(frozen=True)
class Adam:
    """`rate` is the highest; it falls to a twentieth of it at the last of `steps`."""

    rate: float
    steps: int
    warmup: int = 50
    decay: float = 0.01

    def start(self, params: Any) -> Moments:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Moments(zeros, jax.tree.map(jnp.zeros_like, params))

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0. Plain Python: it goes in as an argument."""
        rising = min((step + 1) / self.warmup, 1.0)
        share = min(step / max(self.steps, 1), 1.0)
        return self.rate * rising * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def update(
        self, params: Any, moments: Moments, grads: Any, step: Array, rate: Array
    ) -> tuple[Any, Moments]:
        """One step; gradients are cut to a norm of NORM_MAX. Vectors do not decay."""
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, NORM_MAX / (norm + 1e-6)), grads)
        b1, b2 = DECAYS
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments.first, grads)
        second = jax.tree.map(lambda m, g: b2 * m + (1 - b2) * g * g, moments.second, grads)
        at = step.astype(jnp.float32) + 1
        scale1, scale2 = 1 / (1 - b1**at), 1 / (1 - b2**at)

        def moved(p: Array, m: Array, v: Array) -> Array:
            change = m * scale1 / (jnp.sqrt(v * scale2) + EPSILON)
            if p.ndim > 1:
                change = change + self.decay * p
            return p - rate * change

        return jax.tree.map(moved, params, first, second), Moments(first, second)
