"""Adapters by the names of Neuron's stacks: every form, and what is wrong with one."""

from __future__ import annotations

import json

import pytest

from ranvier.cli.options.adapters import read_modules
from ranvier.cli.options.settings import parse_options
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.translate import translate


def adapters(**override):
    return translate(None, override, {}, {}).adapters


def serving(**fields):
    return adapters(lora_config=fields)


@pytest.mark.parametrize("name", ["lora_ckpt_paths", "lora_ckpt_paths_cpu"])
def test_paths_are_a_dictionary_or_a_list(name):
    found = {"a": "/one", "b": "/two:three"}
    assert serving(**{name: found}) == found
    assert serving(**{name: ["a:/one", "b:/two:three"]}) == found


def test_one_adapter_may_be_in_both_pools():
    assert serving(lora_ckpt_paths={"a": "/a"}, lora_ckpt_paths_cpu=["a:/a", "b:/b"]) == {
        "a": "/a", "b": "/b",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"lora_ckpt_paths_cpu = '/other': a is /a in .*paths\."):
        serving(lora_ckpt_paths={"a": "/a"}, lora_ckpt_paths_cpu=["a:/other"])


@pytest.mark.parametrize("place", ["NeuronConfig", "LoraServingConfig"])
def test_a_file_names_them_below_its_folder(tmp_path, place):
    path = tmp_path / "adapters.json"
    fields = {
        "lora-ckpt-dir": str(tmp_path), "lora-ckpt-paths": {"a": "one"},
        "lora-ckpt-paths-cpu": {"a": "one", "b": "/two"},
    }  # fmt: skip
    path.write_text(json.dumps(fields))
    ask = serving if place == "LoraServingConfig" else adapters
    assert ask(lora_ckpt_json=str(path)) == {"a": str(tmp_path / "one"), "b": "/two"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"lora_modules": [{"name": "a"}]}, "lora_modules.*must be a list of"),
        ({"lora_modules": {"name": "a", "path": "b"}}, "must be a list of"),
        ({"lora_modules": [{"name": "a", "path": "b", "rank": 3}]}, "'rank' is no key"),
        ({"lora_config": {"lora_ckpt_paths": ["a"]}}, "lora_ckpt_paths.*or a list of"),
        ({"lora_config": {"lora_ckpt_paths": {"a": 3}}}, "or a list of"),
        ({"lora_config": {"lora_ckpt_paths_cpu": "a:/b"}}, "or a list of"),
        ({"lora_ckpt_json": "/nowhere.json"}, "nowhere.json'.*can't be read"),
        ({"lora_config": {"lfu_decay_period": 0}}, "lfu_decay_period.*positive integer"),
    ],
)
def test_what_names_no_adapters_is_said_by_its_key(override, said):
    with pytest.raises(ConfigError, match=said):
        adapters(**override)


@pytest.mark.parametrize("text", ["[", "[1]", '{"lora-ckpt-path": {}}', '{"lora-ckpt-dir": 3}'])
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "adapters.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="lora_ckpt_json"):
        serving(lora_ckpt_json=str(path))


def test_they_are_served_beside_those_of_the_command_line():
    lora = {
        "max_loras": 3, "max_lora_rank": 8, "max_cpu_loras": 9, "target_modules": ["q_proj"],
        "eviction_policy": "lfu", "lfu_decay_period": 7, "lora_ckpt_paths": {"a": "/a"},
        "dynamic_multi_lora": True, "lora_memory_transpose": False,
    }  # fmt: skip
    own = {"lora_config": lora, "lora_modules": [{"name": "b", "path": "/b"}]}
    given = {"model": "m", "override_neuron_config": own, "lora_modules": ["c=/c", "a=/a"]}
    options = parse_options(given)
    assert (options.enable_lora, options.max_loras, options.max_lora_rank) == (True, 3, 8)
    assert (options.max_cpu_loras, options.lora_eviction) == (9, "lfu")
    assert options.lora_lfu_decay_period == 7
    assert options.lora_target_modules == ("q_proj",)
    found = {module.name: module.path for module in read_modules(options.lora_modules)}
    assert found == {"a": "/a", "b": "/b", "c": "/c"}
    with pytest.raises(ConfigError, match="'a' is /a in override_neuron_config and /x"):
        parse_options({**given, "lora_modules": ["a=/x"]})


def test_adapters_without_slots_are_refused():
    for given in ({"lora_modules": ["a=/a"]}, {"override_neuron_config": {"lora_modules": [
        {"name": "a", "path": "/a"}
    ]}}):  # fmt: skip
        with pytest.raises(ConfigError, match="needs slots"):
            parse_options({"model": "m", **given})
