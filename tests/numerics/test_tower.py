"""Attention over patches in tiles of queries is numpy's, under both rules of who sees whom."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ranvier.nn.vision.tower import WHOLE_MAX, attend, see_copies, see_same

RULES = {
    "same": (see_same, lambda a, b: a == b),
    "copies": (see_copies, lambda a, b: np.where((a > 0) & (b > 0), 0, np.maximum(b, 1))),
}


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("patches", [37, 1110])
def test_attention_is_numpys(patches, rule):
    rng = np.random.default_rng(patches)
    q, k, v = rng.normal(size=(3, 2, patches, 2, 8)).astype(np.float32)
    labels = rng.integers(0, 4, (2, patches)).astype(np.int32)
    see, seen = RULES[rule] if rule else (see_same, None)
    given = labels if rule else None
    lowered = jax.jit(lambda q, k, v: attend(q, k, v, given, see)).lower(q, k, v)
    assert ("while" in lowered.as_text()) == (patches > WHOLE_MAX)
    found = np.asarray(lowered.compile()(q, k, v)).reshape(q.shape)
    scores = np.einsum("nqhe,nphe->nhqp", q, k)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    if seen:
        weights = weights * seen(labels[:, None, :, None], labels[:, None, None, :])
    wanted = np.einsum("nhqp,nphe->nqhe", weights / weights.sum(-1, keepdims=True), v)
    assert np.abs(found - wanted).max() <= 5e-5
