"""The loss of an unrolled head, and what it counts on the way: matches by draft position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ranvier.train.unroll import Params, Unroll

__all__ = ["Batch", "Frozen", "Objective", "Report"]

STEP_WEIGHT = 0.8
"""What a draft step counts of the one before it; EAGLE-3's factor."""
FEATURE_WEIGHT, TOKEN_WEIGHT = 1.0, 0.1
"""EAGLE's first kind: smooth L1 on the feature, and a tenth of the cross-entropy."""


class Batch(NamedTuple):
    """Rows of T positions.

    Shapes: features f32 [B, T, F]; next_ids int32 [B, T], the token after each position;
    label_ids int32 [B, T, M], what the target says two tokens on, as ids of the head or -1;
    label_probs f32 [B, T, M]; is_live bool [B, T], where a draft may begin.
    """

    features: Array
    next_ids: Array
    label_ids: Array
    label_probs: Array
    is_live: Array


class Frozen(NamedTuple):
    """What the head takes of its target: embeddings [V, D] and its rows of the head [Vd, D]."""

    embed: Array
    head: Array


class Report(NamedTuple):
    """Sums over a batch: losses, chains that hold up to each draft step, and chains begun."""

    loss: Array
    held: Array
    begun: Array


@dataclass(frozen=True)
class Objective:
    """The loss as a pure function of params; `embed_scale` is the target's."""

    unroll: Unroll
    embed_scale: float

    def __call__(self, params: Params, frozen: Frozen, batch: Batch) -> tuple[Array, Report]:
        """The mean loss a live position, and the report."""
        embeds = frozen.embed[batch.next_ids].astype(jnp.float32) * self.embed_scale
        outputs = self.unroll.outputs(params, batch.features, embeds)
        total, held = jnp.float32(0), []
        has_label = batch.label_probs[..., 0] > 0
        # Only chains whose last step has a label, so that all steps share one denominator.
        chain = begun = batch.is_live & _earlier(has_label, len(outputs) - 1)
        for step, hidden in enumerate(outputs):
            live = _delayed(batch.is_live, step) & has_label
            logits = self.unroll.logits(params, hidden, frozen.head)
            loss = _cross_entropy(logits, batch)
            if not self.unroll.spec.is_eagle3:
                loss = TOKEN_WEIGHT * loss + FEATURE_WEIGHT * _feature_loss(hidden, batch.features)
            count = jnp.maximum(jnp.sum(live), 1)
            total += STEP_WEIGHT**step * jnp.sum(jnp.where(live, loss, 0.0)) / count
            is_match = jnp.argmax(logits, axis=-1) == batch.label_ids[..., 0]
            chain = (_delayed(chain, 1) if step else chain) & is_match & live
            held.append(jnp.sum(chain))
        return total, Report(total, jnp.stack(held), jnp.sum(begun))


def _delayed(x: Array, count: int) -> Array:
    """A mask moved `count` positions later."""
    return jnp.pad(x, ((0, 0), (count, 0)))[:, : x.shape[1]] if count else x


def _earlier(x: Array, count: int) -> Array:
    """A mask moved `count` positions earlier."""
    return jnp.pad(x, ((0, 0), (0, count)))[:, count:] if count else x


def _cross_entropy(logits: Array, batch: Batch) -> Array:
    """Of the target's likely tokens, [B, T]; those that the head has no id for take no part."""
    known = batch.label_ids >= 0
    chosen = jnp.take_along_axis(logits, jnp.maximum(batch.label_ids, 0), axis=-1)
    logprobs = chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.sum(jnp.where(known, batch.label_probs * logprobs, 0.0), axis=-1)


def _feature_loss(hidden: Array, features: Array) -> Array:
    """Smooth L1 between a position's output and the target's feature of the next position."""
    wanted = jnp.concatenate([features[:, 1:], features[:, -1:]], axis=1)
    apart = jnp.abs(hidden - wanted)
    return jnp.mean(jnp.where(apart < 1.0, 0.5 * apart * apart, apart - 0.5), axis=-1)
