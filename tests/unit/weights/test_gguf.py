"""GGUF: every format equals the gguf package's own reader; a hostile file is a typed error."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from ranvier.core.errors import CheckpointError
from ranvier.weights.checkpoint import open_checkpoint
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


def quantised_file(file, kind, arch="llama", rows=32):
    """A file with one matrix of random blocks of a format under a name of attention's q."""
    form = FORMATS[kind]
    inputs = 2 * max(form.block, 32)
    raw = np.random.default_rng(kind).integers(
        0, 256, (rows, inputs // form.block * form.bytes), dtype=np.uint8
    )
    halves = {2: 2, 3: 4, 6: 2, 7: 4, 8: 2, 12: 4, 13: 4}.get(kind, 0)
    blocks = raw.reshape(-1, form.bytes)
    at = 208 if kind == 14 else 0
    for i in range(at, at + (halves or 2), 2):
        numbers = np.random.default_rng(i).normal(0, 0.1, len(blocks)).astype(np.float16)
        blocks[:, i : i + 2] = numbers.view(np.uint8).reshape(-1, 2)
    writer = gguf.GGUFWriter(str(file), arch)
    for key, value in {
        "attention.head_count": 4, "attention.head_count_kv": 4, "embedding_length": inputs,
        "feed_forward_length": 8, "block_count": 1, "context_length": 64,
    }.items():  # fmt: skip
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("general.file_type", 15)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.add_tensor("output_norm.weight", np.ones(inputs, np.float32))
    writer.add_tensor("token_embd.weight", np.ones((4, inputs), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))


@pytest.mark.parametrize("kind", [kind for kind, form in FORMATS.items() if form.unpack])
def test_a_matrix_at_its_own_width_has_the_gguf_packages_values(tmp_path, kind):
    wanted = quantised_file(tmp_path / "m.gguf", kind, arch="qwen2")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    found = checkpoint.read_quantised(name)
    assert found.codes.dtype == (np.int8 if found.bits == 8 else np.uint8)
    assert str(found.bits) == FORMATS[kind].name[1]
    assert np.array_equal(found.values(), wanted)
    assert np.array_equal(checkpoint.read(name), wanted)


@pytest.mark.parametrize("kind", [2, 14])
def test_llamas_rope_permutation_is_undone_at_the_own_width_too(tmp_path, kind):
    wanted = quantised_file(tmp_path / "m.gguf", kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    heads, size = 4, 8
    halves = [
        h * size + 2 * i + b for h in range(heads) for b in range(2) for i in range(size // 2)
    ]
    assert np.array_equal(checkpoint.read_quantised(name).values(), wanted[halves])
    assert np.array_equal(checkpoint.read(name), wanted[halves])


def test_what_is_stored_dense_is_not_quantised(tmp_path):
    quantised_file(tmp_path / "m.gguf", 12)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.read_quantised("model.embed_tokens.weight") is None
    assert checkpoint.read_quantised("model.norm.weight") is None
    assert checkpoint.quantisation == "gguf Q4_K_M"


def test_a_scale_that_is_not_finite_is_refused_by_name(tmp_path):
    quantised_file(tmp_path / "m.gguf", 8)
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    file = GgufFile(tmp_path / "m.gguf")
    start = file._tensors["blk.0.attn_q.weight"].start
    data[start : start + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"attn_q\.weight: a scale is not finite"):
        GgufFile(tmp_path / "m.gguf").read_quantised("blk.0.attn_q.weight")
