"""Shards: written whole, and read back by the safetensors package and by ourselves."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import load_file

from ranvier.weights.safetensors_write import save_shards


def test_shards_hold_every_tensor_once(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=(i + 1, 7)).astype(np.float32) for i in range(9)}
    total = save_shards(tmp_path, tensors.items(), shard_bytes=500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == sum(t.nbytes for t in tensors.values())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 1 and sorted(p.name for p in tmp_path.glob("*.safetensors")) == files
    for name, tensor in tensors.items():
        found = load_file(tmp_path / index["weight_map"][name])
        np.testing.assert_array_equal(found[name], tensor)


def test_a_small_model_is_one_file_without_index(tmp_path):
    save_shards(tmp_path, [("a", np.ones((2, 3), np.int8)), ("b", np.ones(5, np.float16))])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found["a"].dtype == np.int8 and found["b"].shape == (5,)
