"""GGUF: every format equals the gguf package's own reader; a hostile file is a typed error."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from ranvier.core.errors import CheckpointError
from ranvier.weights.dequantize import FORMATS, dequantize
from ranvier.weights.gguf import GgufFile


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_equals_the_gguf_package(kind):
    form = FORMATS[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (64, form.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = dequantize(raw.reshape(-1), kind)
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind)).reshape(-1)
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_array("some.strings", ["a", "b"])
    writer.add_uint32("some.number", 7)
    writer.add_tensor("t", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_what_the_gguf_package_writes_is_read(path):
    file = GgufFile(path)
    assert file.metadata["some.strings"] == ["a", "b"]
    assert file.metadata["some.number"] == 7
    assert file.shape("t") == (2, 32)
    assert np.array_equal(file.read("t").ravel(), np.arange(64))


@pytest.mark.parametrize("size", [0, 3, 23, 24, 40, 100, -1])
def test_a_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [(0, "<I", 0), (4, "<I", 9), (8, "<Q", 2**63), (16, "<Q", 2**40), (24, "<Q", 2**62)],
)
def test_hostile_counts_are_refused(path, at, form, value):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        GgufFile(path)


def test_random_damage_never_gives_anything_but_a_typed_error(path):
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(1500):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            file = GgufFile(path)
            for name in file.names():
                file.read(name)
        except CheckpointError:
            pass
