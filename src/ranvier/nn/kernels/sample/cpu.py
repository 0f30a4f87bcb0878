"""Sampling on the CPU kernel: thresholds without a sort, log-probabilities only where asked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ranvier.core.layout import OUTPUT_HEAD, MetaLayout

__all__ = ["sample"]

META_FIELDS = (
    "top_k", "logprob_counts", "target_ids", "edit_counts", "flags", "temperature", "top_p",
    "min_p", "uniform", "repetition", "frequency", "presence",
)  # fmt: skip


def sample(
    logits_RV: Array,
    meta: Array,
    layout: MetaLayout,
    edits: Array,
    allowed: Array,
    *,
    top_count: int,
) -> Array:
    """As the reference; rows past the step's samples are 0, and so is what was not asked for."""
    struct: Any = jax.ShapeDtypeStruct
    shape = (logits_RV.shape[0], OUTPUT_HEAD + 2 * top_count)
    call: Any = jax.ffi.ffi_call("ranvier_sample", struct(shape, jnp.int32))
    offsets = np.asarray([layout.offset(name) for name in META_FIELDS], np.int64)
    out: Array = call(
        logits_RV, meta, edits, allowed, offsets=offsets, top_count=np.int64(top_count)
    )
    return out
