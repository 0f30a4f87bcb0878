"""The files that benchmarks/compare.py gives to engines hold the same numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ranvier.cli.wire import locate
from ranvier.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.real
PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


def test_folder_and_gguf_are_the_model_rounded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(PEERS), *sys.path])
    from weights import Weights

    made = Weights.of("smollm2-135m", tmp_path)
    source = open_checkpoint(locate("smollm2-135m"))
    folder, file = open_checkpoint(made.folder()), open_checkpoint(made.gguf("bf16"))
    assert set(folder.tensor_names()) == set(file.tensor_names()) == set(source.tensor_names())
    for name in source.tensor_names():
        value, wanted = folder.read(name).astype(np.float32), source.read(name)
        assert np.array_equal(value, file.read(name).astype(np.float32)), name
        assert np.abs(value - wanted).max() <= np.abs(wanted).max() * 2.0**-8, name
        assert not np.any(value.view(np.uint32) & 0xFFFF), name
    assert {path.name for path in made.root.iterdir()} == {"hf", "bf16.gguf"}
    assert Weights.of("smollm2-135m", tmp_path) == made


def test_bytes_of_a_step_are_those_of_every_format(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(PEERS), *sys.path])
    from weights import Weights

    made = Weights.of("smollm2-135m", tmp_path)
    source = open_checkpoint(made.source)
    shapes = {name: source.shape(name) for name in source.tensor_names()}
    vectors = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    weights = sum(int(np.prod(shape)) for shape in shapes.values()) - vectors
    table = int(np.prod(shapes["model.embed_tokens.weight"]))
    outputs = sum(shape[0] for shape in shapes.values() if len(shape) == 2)
    assert made.step_bytes("bf16") == made.step_bytes("q4_0", "none") == 2 * (weights + vectors)
    assert made.step_bytes("q8_0") == weights // 32 * 34 + 2 * vectors
    assert made.step_bytes("q4_0") == weights // 32 * 18 + 2 * vectors
    int8 = weights + 4 * outputs + 2 * vectors
    assert made.step_bytes("bf16", "int8-dynamic") == int8
    int4 = (weights - table) // 32 * 18 + table + 4 * shapes["model.embed_tokens.weight"][0]
    assert made.step_bytes("bf16", "int4") == int4 + 2 * vectors
