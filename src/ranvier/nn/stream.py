"""How the residual stream lies over ranks: whole on each, or cut along the step's tokens.

Cut, a core has [T / cores, D] and norms that alone; what a linear takes is gathered first, and a
sum over cores leaves each its own tokens. Fewer norms, a smaller stream, and the bytes that pass
are those of whole sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ranvier.nn.kernels.table import Kernels
from ranvier.nn.shards import AXES, Shards

__all__ = ["Stream"]


@dataclass(frozen=True)
class Stream:
    """The residual stream of one step; `weights` have the rank's number where there are shards."""

    shards: Shards | None
    weights: Mapping[str, Array]

    @property
    def is_cut(self) -> bool:
        return self.shards is not None and self.shards.is_sequence

    @property
    def core(self) -> Array:
        assert self.shards is not None
        core: Array = self.weights["rank"][0] % self.shards.tensor
        return core

    def join(self, y_TD: Array) -> Array:
        """The sum over the cores of a stage, of the rank's own tokens."""
        if self.shards is None:
            return y_TD
        return _scatter(y_TD) if self.is_cut else self.shards.sum(y_TD)

    def join_all(self, y_TD: Array) -> Array:
        """As join, over the ranks of all stages."""
        assert self.shards is not None
        if not self.is_cut:
            return self.shards.sum_all(y_TD)
        return self.shards.sum_stages(_scatter(y_TD))

    def whole(self, x_TD: Array) -> Array:
        """All tokens, of the rank's own."""
        if not self.is_cut:
            return x_TD
        all_TD: Array = lax.all_gather(x_TD, AXES[1], axis=0, tiled=True)
        return all_TD

    def rows(self, x_TD: Array, index_R: Array) -> Array:
        """Rows by the number of their token, on every rank."""
        if not self.is_cut:
            return _take(x_TD, index_R)
        assert self.shards is not None
        tokens = x_TD.shape[0]
        place_R = index_R - self.core * tokens
        own_R = jnp.clip(place_R, 0, tokens - 1)
        rows_RD = jnp.where((place_R == own_R)[:, None], _take(x_TD, own_R), 0.0)
        return self.shards.sum(rows_RD)

    def count(self, count: Array, x_TD: Array) -> Array:
        """How many rows of the rank's own are live, where `count` [1] of all are."""
        if not self.is_cut:
            return count
        tokens = x_TD.shape[0]
        return jnp.clip(count - self.core * tokens, 0, tokens)

    def normed(
        self, kernels: Kernels, x_TD: Array, norm: tuple[Array, float],
        place: tuple[Array, Array], dtype: Any,
    ) -> tuple[Array, tuple[Array, float] | None]:  # fmt: skip
        """What a linear takes, and the norm that is left to it. `place`: layer and count, [1]."""
        if not self.is_cut:
            return x_TD, norm
        layer, count = place
        own = self.count(count, x_TD)
        y_TD = kernels.rms_norm(x_TD, norm[0], layer, own, eps=norm[1])
        return self.whole(y_TD.astype(dtype)), None


def _scatter(y_TD: Array) -> Array:
    scatter: Any = lax.psum_scatter
    own: Array = scatter(y_TD, AXES[1], scatter_dimension=0, tiled=True)
    return own


def _take(x: Array, index: Array) -> Array:
    """x[index] along the first axis; the index is in range."""
    return x.at[index].get(mode="promise_in_bounds")
