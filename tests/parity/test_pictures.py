"""Preprocessing is that of transformers' processors, bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity.pictures import CASES, drawing

from ranvier.core.media import ImageItem
from ranvier.media.process.prepared import Configs
from ranvier.media.process.table import FAMILIES
from ranvier.media.vision import rope_axes

GOLDENS = json.loads((Path(__file__).parent / "goldens/pictures/processors.json").read_text())
MODELS = {
    "llava": {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14}},
    "llava_next": {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14}},
}
ALL = [(name, size) for name in CASES for size in GOLDENS["cases"][name]]


def prepare(name, size):
    family, fields, given = CASES[name]
    configs = Configs({"model_type": family, **MODELS.get(family, {})}, fields, given)
    processor = FAMILIES[family].processor.read(configs)
    return FAMILIES[family], processor.prepare(drawing(*map(int, size.split("x"))))


@pytest.mark.parametrize(("name", "size"), ALL)
def test_values_are_the_references_to_the_bit(name, size):
    golden = GOLDENS["cases"][name][size]
    _, prepared = prepare(name, size)
    assert list(prepared.values.shape) == golden["shape"]
    flat = np.ascontiguousarray(prepared.values).ravel()
    samples = flat[:: max(1, flat.size // 24)][:24]
    np.testing.assert_allclose(samples, golden["samples"], atol=2e-5)
    assert hashlib.sha256(flat.tobytes()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize(("name", "size"), ALL)
def test_the_prompts_text_is_the_references(name, size):
    golden = GOLDENS["cases"][name][size]
    family, prepared = prepare(name, size)
    head, *rest = prepared.text.split(family.feature)
    assert len(rest) == len(prepared.runs)
    parts = [f"{family.feature * run}{part}" for run, part in zip(prepared.runs, rest, strict=True)]
    text = head + "".join(parts)
    assert len(text) == golden["text_length"]
    assert hashlib.sha256(text.encode()).hexdigest() == golden["text"]
    assert list(prepared.grid) == golden.get("grid", list(prepared.grid))


@pytest.mark.parametrize("size", GOLDENS["cases"]["mllama"])
def test_mllamas_grid_is_its_aspect_ratio(size):
    golden = GOLDENS["cases"]["mllama"][size]
    _, prepared = prepare("mllama", size)
    shapes = [(a, b) for a in range(1, 5) for b in range(1, 5) if a * b <= 4]
    assert shapes.index(prepared.grid[1:]) + 1 == golden["aspect_ratio_id"]


@pytest.mark.parametrize("case", GOLDENS["rope"])
def test_rope_axes_are_the_references(case):
    at, items = case["words"][0], []
    for words, grid in zip(case["words"][1:], case["grids"], strict=True):
        count = grid[0] * grid[1] // 4
        items.append(
            ImageItem(
                digest=b"", pixels=b"", shape=(), grid=(1, *grid), size=(1, 1),
                spans=((at, count),),
            )
        )  # fmt: skip
        at += count + words
    axes, delta = rope_axes(at, items)
    positions = np.frombuffer(axes, np.int32).reshape(3, -1)
    assert positions.tolist() == case["positions"]
    assert delta == case["delta"]
