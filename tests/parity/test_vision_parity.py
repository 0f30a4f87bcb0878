"""Encoders, logits and greedy tokens equal transformers' on tiny random models that see pictures.

Goldens: tests/parity/make_vision_goldens.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.parity.vision_model import CASES, GOLDENS, VisionModel

BOUND = 2e-4
FAMILIES = sorted({family for family, _ in CASES})


KINDS = {
    "reference": dict(kernels="reference"),
    "cpu": dict(kernels="cpu"),
    "unragged": dict(kernels="reference", is_ragged=False),
}


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in KINDS], ids="-".join)
def model(request):
    family, kind = request.param
    return VisionModel(family, **KINDS[kind]), np.load(GOLDENS / family / "golden.npz")


def labels_of(golden):
    return sorted({name.split("/")[0] for name in golden})


def test_features_logits_and_greedy_tokens_are_the_references(model):
    ours, golden = model
    for label in labels_of(golden):
        case = ours.case(label, golden[f"{label}/ids"])
        if case.images:
            features = ours.encode(case)
            assert np.abs(features - golden[f"{label}/features"]).max() <= BOUND, label
        logits = ours.prefill(case)
        assert np.abs(logits[-16:] - golden[f"{label}/logits"]).max() <= BOUND, label
        wanted = golden[f"{label}/tokens"].tolist()
        assert ours.decode(case, logits[-1], len(wanted)) == wanted, label


def test_a_prompt_cut_within_its_pictures_gives_the_same_logits(model):
    ours, golden = model
    label = labels_of(golden)[-1]
    case = ours.case(label, golden[f"{label}/ids"])
    if case.images:
        ours.encode(case)
    # Placeholders that see each other come in one chunk: the cuts lie around them.
    first = case.images[0].spans[0] if case.images else (4, 2)
    cuts = (
        (first[0], sum(first)) if ours.info.is_whole else (first[0] + 1, first[0] + 2, sum(first))
    )
    last = sorted({cut for cut in cuts if 0 < cut < len(case.ids)})
    logits = ours.prefill(case, tuple(last))
    assert np.abs(logits[-16:] - golden[f"{label}/logits"]).max() <= BOUND


def test_sequences_with_and_without_pictures_in_one_step_are_as_alone(model):
    ours, golden = model
    if not ours.is_ragged:
        pytest.skip("a prefill program takes one sequence")
    labels = ["none", labels_of(golden)[-1]]
    cases = [ours.case(label, golden[f"{label}/ids"]) for label in labels]
    ours.encode(cases[1])
    for order in ((0, 1), (1, 0)):
        found = ours.together([cases[i] for i in order])
        for i, logits in zip(order, found, strict=True):
            assert np.abs(logits[-16:] - golden[f"{labels[i]}/logits"]).max() <= BOUND, labels[i]


BFLOAT16 = 0.02
"""Of the size of what is compared; roundings alone make 0.004 of features and 0.005 of logits."""


@pytest.mark.parametrize("family", ["mllama", "qwen3_vl"])
def test_bfloat16_stays_near_the_reference(family):
    ours, golden = VisionModel(family, "cpu", "bfloat16"), np.load(GOLDENS / family / "golden.npz")
    label = labels_of(golden)[-1]
    case = ours.case(label, golden[f"{label}/ids"])
    found = {"features": ours.encode(case), "logits": ours.prefill(case)[-16:]}
    for name, values in found.items():
        wanted = golden[f"{label}/{name}"]
        error = np.sqrt(np.mean(np.square(values - wanted)) / np.mean(np.square(wanted)))
        assert 0 < error <= BFLOAT16, name
