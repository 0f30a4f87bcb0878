"""Where features of pictures enter the text side: in place of embeddings, and behind layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.core.layout import MetaLayout

__all__ = ["Seen", "look"]


@dataclass(frozen=True)
class Seen:
    """What a step's pictures add behind the embedding.

    `deep` [M, T, D] is added behind each of the first M layers (Qwen3-VL). `across` changes the
    stream before some layers (nn/vision/cross.py).
    """

    deep: Array | None = None
    across: Mapping[int, Callable[[Array], Array]] = field(default_factory=dict)

    def deepen(self, x_TD: Array, layer: Array) -> Array:
        """The stream behind a layer, with what the features hold for it."""
        if self.deep is None:
            return x_TD
        count = self.deep.shape[0]
        at = jnp.minimum(layer, count - 1)
        own = lax.dynamic_index_in_dim(self.deep, at, 0, keepdims=False)
        return x_TD + jnp.where(layer < count, own, 0.0)


def look(
    x_TD: Array, state: Mapping[str, Array], meta: Array, layout: MetaLayout
) -> tuple[Array, Seen | None]:
    """Put features where the step names rows of them; what else they hold is for later layers.

    Shapes: state["features"] [F, (1 + M) * D].
    """
    if "feature_source" not in layout.slices:
        return x_TD, None
    with jax.named_scope("features"):
        hidden = x_TD.shape[1]
        source_T = meta[layout.slices["feature_source"]]
        rows = state["features"].at[jnp.maximum(source_T, 0)].get(mode="promise_in_bounds")
        rows = jnp.where((source_T >= 0)[:, None], rows.astype(jnp.float32), 0.0)
        x_TD = jnp.where((source_T >= 0)[:, None], rows[:, :hidden], x_TD)
        if rows.shape[1] == hidden:
            return x_TD, None
        deep = rows[:, hidden:].reshape(layout.tokens, -1, hidden)
        return x_TD, Seen(jnp.swapaxes(deep, 0, 1))
