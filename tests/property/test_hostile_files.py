"""Any bytes that a model folder or file may hold end in a model or in one typed error, soon."""

from __future__ import annotations

import json
import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import GOLDENS

from ranvier.core.errors import CheckpointError
from ranvier.models.table import ARCHITECTURES, resolve
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.gguf import GgufFile
from ranvier.weights.gguf_checkpoint import GgufCheckpoint
from ranvier.weights.safetensors import SafetensorsFile

QUICK = settings(
    max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 8, 2**31, 2**63, 10**30])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F99"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS, max_size=3) | JSON,
    },
)


def use(checkpoint):
    for name in checkpoint.names():
        checkpoint.read(name)


@QUICK
@given(header=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4) | JSON)
def test_any_safetensors_header(tmp_path, header):
    path = tmp_path / "m.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    try:
        use(SafetensorsFile(path))
    except CheckpointError as error:
        assert "m.safetensors" in str(error)


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes_as_safetensors_and_gguf(tmp_path, data):
    for name, kind in (("m.safetensors", SafetensorsFile), ("m.gguf", GgufFile)):
        head = b"GGUF" + struct.pack("<I", 3) if kind is GgufFile else b""
        (tmp_path / name).write_bytes(head + data)
        try:
            use(kind(tmp_path / name))
        except CheckpointError as error:
            assert name in str(error)


def llama_gguf(path, **changes):
    """A GGUF of the right form but for `changes` (key to a value of any type)."""
    writer = gguf.GGUFWriter(str(path), "llama")
    fields = {
        "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": 32,
        "llama.feed_forward_length": 32, "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.scores": [0.0, 1.0],
        "tokenizer.ggml.token_type": [3, 1], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    } | changes  # fmt: skip
    for key, value in fields.items():
        add_field(writer, key, value)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:
        writer.add_array(key, value)


VALUES = (
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | st.text(max_size=4)
    | st.lists(st.text(max_size=3), min_size=1, max_size=3)
    | st.lists(st.integers(-9, 9), min_size=1, max_size=3)
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "general.alignment", "llama.block_count", "llama.attention.head_count",
        "llama.attention.head_count_kv", "llama.embedding_length", "llama.rope.freq_base",
        "llama.attention.key_length", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.model",
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.merges", "tokenizer.chat_template",
    ]
)  # fmt: skip


@QUICK
@given(changes=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_gguf_metadata(tmp_path, changes):
    path = llama_gguf(tmp_path / "m.gguf", **changes)
    try:
        checkpoint = GgufCheckpoint(path)
        resolve(checkpoint.config)
        _ = checkpoint.tokenizer_config
        checkpoint.tokenizer_json()
    except CheckpointError:
        pass


@pytest.mark.parametrize("family", ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3"])
@settings(max_examples=60, deadline=5000)
@given(data=st.data())
def test_any_config(family, data):
    config = json.loads((GOLDENS / family / "config.json").read_text())
    names = data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2))
    for name in names:
        config[name] = data.draw(JSON)
    try:
        resolve(config)
    except CheckpointError as error:
        assert "config.json" in str(error)


def test_an_unsupported_architecture_lists_the_supported():
    with pytest.raises(CheckpointError) as caught:
        resolve({"architectures": ["MambaForCausalLM"]})
    assert "MambaForCausalLM" in caught.value.message
    assert all(name in caught.value.hint for name in ARCHITECTURES)


def test_overlapping_gguf_tensors_are_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    for name in ("one", "two"):
        writer.add_tensor(name, np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = tmp_path / "m.gguf"
    data = path.read_bytes()
    at = data.index(b"two") + 3 + 4 + 16 + 4
    path.write_bytes(data[:at] + struct.pack("<Q", 0) + data[at + 8 :])
    with pytest.raises(CheckpointError, match="overlap"):
        GgufFile(path)


@pytest.fixture
def folder(tmp_path):
    """A model folder in a folder of its own, with a secret beside it."""
    (tmp_path / "secret").write_text('{"architectures": ["secret"]}')
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text("{}")
    return home


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"],
)
def test_a_link_out_of_the_folder_is_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret")
    with pytest.raises(CheckpointError, match="leaves the model's folder") as caught:
        open_checkpoint(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_late_link_out_of_the_folder_is_refused(folder, name):
    (folder / name).symlink_to("/etc/passwd")
    checkpoint = open_checkpoint(folder)
    read = checkpoint.tokenizer_json if name == "tokenizer.json" else checkpoint.tensor_names
    with pytest.raises(CheckpointError, match="leaves the model's folder"):
        read()


def test_links_of_the_hub_s_cache_are_followed(tmp_path):
    home = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    home.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text('{"model_type": "llama"}')
    (home / "config.json").symlink_to("../../blobs/abc")
    assert open_checkpoint(home).config == {"model_type": "llama"}


def test_pipes_and_folders_are_no_model_files(folder):
    os.mkfifo(folder / "tokenizer.json")
    (folder / "model.safetensors").mkdir()
    checkpoint = open_checkpoint(folder)
    for read in (checkpoint.tokenizer_json, checkpoint.tensor_names):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read()


@pytest.mark.parametrize(
    "index",
    [{"x": 1}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 5}},
     {"weight_map": {"a": "../secret"}}, {"weight_map": {"a": "/etc/passwd"}},
     {"weight_map": {"a": ""}}, {"weight_map": {"a": "missing.safetensors"}}],
)  # fmt: skip
def test_a_hostile_index_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder).tensor_names()


def test_weights_in_pickles_are_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pytorch_model.bin holds pickles"):
        open_checkpoint(folder).tensor_names()
