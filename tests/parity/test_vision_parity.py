"""Encoders, logits and greedy tokens equal transformers' on tiny random models that see pictures.

Goldens: tests/parity/make_vision_goldens.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.parity.vision_model import CASES, GOLDENS, VisionModel

from ranvier.nn.kernels.table import TABLE

BOUND = 2e-4
FAMILIES = sorted({family for family, _ in CASES})


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in TABLE], ids="-".join)
def model(request):
    family, kernels = request.param
    return VisionModel(family, kernels), np.load(GOLDENS / family / "golden.npz")


def labels_of(golden):
    return sorted({name.split("/")[0] for name in golden})


def test_features_logits_and_greedy_tokens_are_the_references(model):
    ours, golden = model
    for label in labels_of(golden):
        case = ours.case(label, golden[f"{label}/ids"])
        if case.images:
            features = ours.encode(case)
            wanted = golden[f"{label}/features"]
            assert np.abs(features - wanted).max() <= BOUND, label
        logits = ours.prefill(case)
        assert np.abs(logits[-16:] - golden[f"{label}/logits"]).max() <= BOUND, label
        assert ours.decode(case, logits[-1], len(golden[f"{label}/tokens"])) == list(
            golden[f"{label}/tokens"]
        ), label
