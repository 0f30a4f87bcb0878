"""Full logits of a model: programs that a tool builds for itself, never part of an artifact.

Serving returns tokens and log-probabilities; comparing a model with a reference needs every logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ranvier.build.pack import pack_weights
from ranvier.core.layout import MetaLayout
from ranvier.models.spec import DecoderSpec
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import select
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["LogitsModel"]

CHUNK = 64
BLOCK_TOKENS = 32


class LogitsModel:
    """One sequence at a time: a program for chunks of 64 tokens and one for a single token."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: DecoderSpec,
        *,
        dtype: str,
        kernels: str,
        tokens_max: int,
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
        self._state = {
            "k": jnp.zeros(shapes.k, kind),
            "v": jnp.zeros(shapes.v, kind),
            "sampled": jnp.zeros((1,), jnp.int32),
        }
        self._programs: dict[int, tuple[MetaLayout, Any]] = {}
        for tokens in (CHUNK, 1):
            layout = MetaLayout(tokens=tokens, rows=1, blocks=blocks)
            decoder = Decoder(spec, chosen, layout, 0)
            self._programs[tokens] = layout, jax.jit(decoder.logits_of_all, donate_argnums=1)

    def run(self, ids: Sequence[int], start: int = 0) -> NDArray[np.float32]:
        """Logits [len(ids), V] of `ids` at positions from `start` on, the ones before in cache."""
        parts, at = [], 0
        while at < len(ids):
            size = CHUNK if len(ids) - at > 1 else 1
            part = ids[at : at + size]
            parts.append(self._step(part, start + at, size))
            at += len(part)
        return np.concatenate(parts)

    def greedy(
        self, prompt_ids: Sequence[int], count: int
    ) -> tuple[list[int], NDArray[np.float32]]:
        """`count` tokens by argmax, ends ignored, and the logits [count, V] they come from."""
        logits = [self.run(prompt_ids)[-1]]
        tokens = [int(logits[0].argmax())]
        while len(tokens) < count:
            logits.append(self.run(tokens[-1:], len(prompt_ids) + len(tokens) - 1)[0])
            tokens.append(int(logits[-1].argmax()))
        return tokens, np.stack(logits)

    def _step(self, ids: Sequence[int], start: int, size: int) -> NDArray[np.float32]:
        layout, program = self._programs[size]
        meta, at, count = np.zeros(layout.size, np.int32), layout.slices, len(ids)
        meta[at["token_ids"]][:count] = ids
        meta[at["token_source"]] = -1
        meta[at["positions"]][:count] = np.arange(start, start + count)
        meta[at["query_starts"]][1:] = count
        meta[at["context_lens"]][0] = start + count
        meta[at["block_tables"]] = 1 + np.arange(layout.blocks)
        meta[:3] = (count, 1, 0)
        self._state, logits = program(self._weights, self._state, jnp.asarray(meta))
        return np.asarray(logits)[:count]
