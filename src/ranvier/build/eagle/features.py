"""What a draft head learns from: a target's features and likely tokens, by a program of its own.

A tool builds this program for itself; it is never part of an artifact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from ranvier.build.pack import pack_weights
from ranvier.core.layout import MetaLayout
from ranvier.models.spec import DecoderSpec
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import select
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["FeatureModel", "Features"]

BLOCK_TOKENS = 32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Of each token of a sequence: what the head sees, and what the target would say next.

    Shapes: values f32 [T, F]; top_ids int32 [T, M] by falling probability; top_probs f32 [T, M];
    M is the model's top_count.
    """

    values: Floats
    top_ids: NDArray[np.int32]
    top_probs: Floats


class FeatureModel:
    """A target that gives features of one whole sequence at a time.

    `taps`: after how many layers the stream is taken, side by side; empty: the stream that the
    last norm gives, which is what EAGLE's first kind sees. `top_count` 0: the head is not run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: DecoderSpec,
        taps: tuple[int, ...],
        *,
        dtype: str,
        kernels: str,
        tokens_max: int,
        top_count: int,
    ) -> None:
        chosen = select(kernels)
        packed = pack_weights(checkpoint, spec, dtype, kernels)
        self._weights = {name: jnp.asarray(array) for name, array in packed}
        blocks = -(-tokens_max // BLOCK_TOKENS)
        heads = AttentionSpec(
            spec.heads, spec.kv_heads, spec.head_size, spec.attention_scale, spec.norm_eps
        )
        shapes = chosen.cache_shapes(spec.layers, heads, blocks + 1, BLOCK_TOKENS, DTYPES[dtype])
        kind: Any = DTYPES[dtype]
        self._state = {"k": jnp.zeros(shapes.k, kind), "v": jnp.zeros(shapes.v, kind)}
        self._layout = MetaLayout(tokens=tokens_max, rows=1, blocks=blocks)
        decoder = Decoder(spec, chosen, self._layout, 0)
        self._program = jax.jit(_program(decoder, taps, top_count), donate_argnums=1)

    def run(self, ids: Sequence[int]) -> Features:
        """Features of a sequence of at most tokens_max tokens."""
        layout, count = self._layout, len(ids)
        meta, at = np.zeros(layout.size, np.int32), layout.slices
        meta[at["token_ids"]][:count] = ids
        meta[at["token_source"]] = -1
        meta[at["positions"]][:count] = np.arange(count)
        meta[at["query_starts"]][1:] = count
        meta[at["context_lens"]][0] = count
        meta[at["block_tables"]] = 1 + np.arange(layout.blocks)
        meta[:3] = (count, 1, 0)
        self._state, found = self._program(self._weights, self._state, jnp.asarray(meta))
        values, top_ids, top_probs = (np.asarray(part)[:count] for part in found)
        return Features(values, top_ids, top_probs)


def _program(decoder: Decoder, taps: tuple[int, ...], top_count: int) -> Any:
    wanted = taps or (decoder.spec.layers,)

    def features(
        weights: dict[str, Array], state: dict[str, Array], meta: Array
    ) -> tuple[dict[str, Array], tuple[Array, Array, Array]]:
        x_TD = decoder.embed(weights, meta[decoder.layout.slices["token_ids"]])
        caches = state["k"], state["v"]
        hidden_TD, k, v, found = decoder.run(weights, x_TD, caches, meta, wanted)
        state = {"k": k, "v": v}
        values_TF = jnp.concatenate(found, axis=1)
        if not taps:
            values_TF = decoder.kernels.rms_norm(
                values_TF, weights["final_norm"], jnp.zeros((1,), jnp.int32), meta[0:1],
                eps=decoder.spec.norm_eps,
            )  # fmt: skip
        if not top_count:
            none = jnp.zeros((values_TF.shape[0], 0))
            return state, (values_TF, none.astype(jnp.int32), none)
        logits_TV = decoder.head(weights, hidden_TD, meta[0:1])
        probs_TM, ids_TM = jax.lax.top_k(jax.nn.softmax(logits_TV, axis=1), top_count)
        return state, (values_TF, ids_TM, probs_TM)

    return features
