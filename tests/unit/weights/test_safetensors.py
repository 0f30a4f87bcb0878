"""Safetensors: equal to the reference package; a hostile file is a typed error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ranvier.core.errors import CheckpointError
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.safetensors import SafetensorsFile


def write(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data)
    return path


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_what_the_reference_package_writes_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    save_file(arrays, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    for name, array in arrays.items():
        assert file.shape(name) == array.shape
        assert np.array_equal(file.read(name), array)


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"a": entry(dtype="F99")}, "dtype of a"),
        ({"a": entry(shape=[3])}, "size of a"),
        ({"a": entry(shape=[-2])}, "shape of a"),
        ({"a": entry(shape="x")}, "shape of a"),
        ({"a": entry(data_offsets=[0, 2**60])}, "data_offsets of a"),
        ({"a": entry(data_offsets=[8, 0])}, "data_offsets of a"),
        ({"a": entry(data_offsets=[0])}, "data_offsets of a"),
        ({"a": entry(), "b": entry()}, "overlap"),
        ({"a": 1}, "a is 1"),
        (b"[1, 2]", "header"),
        (b"{", "header"),
        (b"[" * 100_000, "header"),
    ],
)
def test_a_hostile_header_is_refused_by_name(tmp_path, header, field):
    with pytest.raises(CheckpointError, match=field):
        SafetensorsFile(write(tmp_path / "m.safetensors", header))


@pytest.mark.parametrize("length", [2**63, 10**6, 10**12])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    with pytest.raises(CheckpointError, match="header length"):
        SafetensorsFile(write(tmp_path / "m.safetensors", {"a": entry()}, length=length))


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leaves the model's folder"):
        open_checkpoint(tmp_path).tensor_names()


def test_a_missing_path_and_a_folder_without_config_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)
