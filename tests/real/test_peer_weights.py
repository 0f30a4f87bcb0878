"""The two files that benchmarks/compare.py gives to engines hold the same bf16 numbers."""

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
    from weights import make_weights

    made = make_weights("smollm2-135m", tmp_path)
    source = open_checkpoint(locate("smollm2-135m"))
    folder, file = open_checkpoint(made.folder), open_checkpoint(made.gguf)
    assert set(folder.tensor_names()) == set(file.tensor_names()) == set(source.tensor_names())
    for name in source.tensor_names():
        value, wanted = folder.read(name).astype(np.float32), source.read(name)
        assert np.array_equal(value, file.read(name).astype(np.float32)), name
        assert np.abs(value - wanted).max() <= np.abs(wanted).max() * 2.0**-8, name
        assert not np.any(value.view(np.uint32) & 0xFFFF), name
    sizes = [np.prod(source.shape(name)) for name in source.tensor_names()]
    assert made.step_bytes == 2 * sum(sizes)
    assert make_weights("smollm2-135m", tmp_path) == made
