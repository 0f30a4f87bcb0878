"""The numpy forward pass gives transformers' logits on tiny random models of every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ranvier.models.table import resolve
from ranvier.quantize.forward import embed, head, layer_vectors, run_layer
from ranvier.weights.checkpoint import open_checkpoint

GOLDENS = Path(__file__).parents[2] / "parity/goldens"


@pytest.mark.parametrize(
    "family", sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
)
def test_logits_equal_transformers(family):
    checkpoint = open_checkpoint(GOLDENS / family)
    spec = resolve(checkpoint.config)
    golden = np.load(GOLDENS / family / "golden.npz")
    x = embed(checkpoint, spec, golden["ids"][None].astype(np.int64))
    for layer in range(spec.layers):

        def linear(array, y, layer=layer):
            names = spec.array(array).sources[layer]
            return y @ np.concatenate([checkpoint.read(n).astype(np.float32) for n in names]).T

        x = run_layer(x, spec, layer, layer_vectors(checkpoint, spec, layer), linear)
    logits = head(checkpoint, spec).logits(x[0])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=1e-4)
