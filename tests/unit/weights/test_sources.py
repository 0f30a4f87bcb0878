"""Where models come from: shards, hub ids, other tokenizers; wrong names say what is near."""

from __future__ import annotations

import json
import shutil
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, locate, open_codec, open_model
from ranvier.core.errors import CheckpointError, ConfigError
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.hub import fetch_hub


def test_shards_read_as_one_file(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    (tmp_path / "m/model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / "m" / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps(index))
    whole, sharded = open_checkpoint(tiny_model), open_checkpoint(tmp_path / "m")
    assert sharded.tensor_names() == whole.tensor_names()
    for name in names:
        assert np.array_equal(sharded.read(name), whole.read(name))
    save_file(tensors, tmp_path / "m/b.safetensors")
    with pytest.raises(CheckpointError, match="is in a.safetensors too"):
        open_checkpoint(tmp_path / "m").tensor_names()


class FakeHub(types.ModuleType):
    """Stands for huggingface_hub: hands out one folder, or fails as the client does."""

    def __init__(self, folder=None, error=None):
        super().__init__("huggingface_hub")
        self.folder, self.error, self.calls = folder, error, []

    def snapshot_download(self, name, **given):
        self.calls.append((name, given))
        if self.error:
            raise self.error
        return str(self.folder)


def test_a_hub_id_is_fetched_with_its_revision_and_only_what_is_needed(tiny_model, monkeypatch):
    hub = FakeHub(tiny_model)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    options = parse_options({"model": "org/name", "revision": "abc", "download_dir": "/d"})
    assert open_model(options).config["architectures"] == ["LlamaForCausalLM"]
    ((name, given),) = hub.calls
    assert (name, given["revision"], given["cache_dir"]) == ("org/name", "abc", "/d")
    assert "*.safetensors" in given["allow_patterns"]
    assert not any("bin" in pattern for pattern in given["allow_patterns"])


@pytest.mark.parametrize("error", [OSError("offline mode"), ValueError("404 Not Found")])
def test_an_unknown_id_or_no_network_is_a_typed_error(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(error=error))
    with pytest.raises(CheckpointError, match=f"org/name@main can't be had.*{error}"):
        fetch_hub("org/name", "main")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="huggingface_hub is not installed") as caught:
        locate("org/name")
    assert "ranvier[hub]" in caught.value.hint


def test_a_repository_without_safetensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path))
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        fetch_hub("org/name")


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(CheckpointError, match="Did you mean smollm2-135m"):
        locate("smolm2-135m")
    with pytest.raises(CheckpointError, match="no such folder or file"):
        locate("/nowhere/at/all")


def codec(options):
    folder = ensure_artifact(parse_options(options))
    return open_codec(folder, 160, 128, parse_options(options))


def test_another_tokenizer_makes_another_artifact(tiny_options, tiny_model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny_model / "tokenizer.json", other)
    (other / "tokenizer_config.json").write_text('{"chat_template": "X", "bos_token": "<s>"}')
    options = {**tiny_options, "tokenizer": str(other)}
    found = codec(options)
    assert found.render_chat([{"role": "user", "content": "a"}]) == "X"
    plain = ensure_artifact(parse_options(tiny_options))
    assert ensure_artifact(parse_options(options)) != plain


def test_templates_and_defaults_of_the_options_win(tiny_options, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("T")
    found = codec({**tiny_options, "chat_template": str(file)})
    assert found.render_chat([{"role": "user", "content": "a"}]) == "T"
    found = codec({**tiny_options, "chat_template": "{{ messages | length }}"})
    assert found.render_chat([{"role": "user", "content": "a"}]) == "1"
    (tmp_path / "generation_config.json").write_text('{"temperature": 0, "top_k": 3}')
    changed = {"generation_config": str(tmp_path), "override_generation_config": {"top_k": 5}}
    params = codec({**tiny_options, **changed}).default_sampling_params()
    assert (params.temperature, params.top_k) == (0, 5)
    plain = codec({**tiny_options, "generation_config": "vllm"}).default_sampling_params()
    assert (plain.temperature, plain.top_k) == (1, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chat_template": "nothing.jinja"}, "no such file"),
        ({"generation_config": "nothing"}, "not auto, vllm or a folder"),
        ({"override_generation_config": {"temprature": 1}}, "Did you mean temperature"),
        ({"override_generation_config": {"temperature": -1}}, "temperature"),
        ({"override_generation_config": {"temperature": "x"}}, "temperature"),
        ({"tokenizer": "/nowhere"}, "no such folder"),
    ],
)
def test_wrong_text_options_are_errors_by_name(tiny_options, given, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        codec({**tiny_options, **given})


def test_a_tokenizer_that_does_not_parse_is_an_error_before_the_build(tiny_model, tmp_path, capsys):
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(CheckpointError, match="tokenizer.json does not parse"):
        ensure_artifact(parse_options({"model": str(tmp_path / "m")}))
    assert "compiled" not in capsys.readouterr().err


def test_hf_overrides_change_the_model(tiny_options):
    options = {**tiny_options, "hf_overrides": {"rope_theta": 1e6, "rope_parameters": None}}
    assert open_model(parse_options(options)).config["rope_theta"] == 1e6
    plain = ensure_artifact(parse_options(tiny_options))
    assert ensure_artifact(parse_options(options)) != plain
