"""Adapters through the offline LLM: each sequence gets the merged model's tokens."""

from __future__ import annotations

import shutil
import sys
import types

import pytest
from tests.adapters import LLAMA, modules_of, random_tensors, save_adapter
from tests.numerics.lora_device import model_of

from ranvier import LLM, LoRARequest, SamplingParams
from ranvier.cli.main import main
from ranvier.core.errors import (
    AdapterError,
    AdapterUnavailable,
    ConfigError,
    ModelNotFound,
    RequestError,
)

PARAMS = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPT = {"prompt_token_ids": list(range(3, 70))}
"""Two full blocks, so that prefixes could be shared wrongly."""
SHAPES = {"a": {"rank": 4}, "b": {"rank": 16, "names": ("q_proj", "v_proj")}, "c": {"rank": 8}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The model in f32, so that merging rounds nothing, and three adapters of it."""
    root = tmp_path_factory.mktemp("adapters")
    found = {"model": model_of(root, "llama")}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        modules = modules_of(LLAMA, names=shape.get("names"))
        rank = shape["rank"]
        tensors = random_tensors(modules, rank, seed)
        found[name] = save_adapter(root / name, tensors, r=rank, lora_alpha=rank)
    return found


@pytest.fixture(scope="module")
def options(tiny_options, folders):
    return {**tiny_options, "model": str(folders["model"])}


@pytest.fixture(scope="module")
def wanted(options, folders, tmp_path_factory):
    """Tokens of the model and of each merged one."""
    out = tmp_path_factory.mktemp("merged")
    models = {"": folders["model"]}
    for name in SHAPES:
        models[name] = out / name
        words = ["merge-lora", str(folders["model"]), str(folders[name])]
        assert main([*words, "--output", str(models[name])]) == 0
    found = {}
    for name, model in models.items():
        with LLM(**{**options, "model": str(model)}) as llm:
            found[name] = tokens(llm.generate(PROMPT, PARAMS, use_tqdm=False))[0]
    assert len({tuple(ids) for ids in found.values()}) == 4
    return found


@pytest.fixture
def llm(options):
    lora = {"max_loras": 2, "max_lora_rank": 16, "max_cpu_loras": 2}
    with LLM(**options, enable_lora=True, **lora) as llm:
        yield llm


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_guesses_change_no_token_of_an_adapter(options, folders, wanted, method):
    """The draft is the base model's: it guesses for every adapter."""
    guess = {"method": method, "num_speculative_tokens": 3}
    guess |= {"model": str(folders["model"])} if method == "draft_model" else {}
    with LLM(**options, enable_lora=True, max_loras=2, speculative_config=guess) as llm:
        policy = llm._engine.scheduler.speculation.policy
        policy.choose = lambda rows, rooms: 3 if any(rooms) else 0
        requests = [LoRARequest(name, 1, str(folders[name])) for name in SHAPES]
        outputs = llm.generate([PROMPT] * 3, PARAMS, lora_request=requests, use_tqdm=False)
        assert method == "ngram" or llm.stats().drafts > 0
    assert tokens(outputs) == [wanted[name] for name in SHAPES]


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_a_batch_of_more_adapters_than_slots_is_each_merged_model(llm, folders, wanted):
    names = ["a", "", "b", "c", "a", "b", "", "c"]
    requests = [LoRARequest(n, 1, str(folders[n])) if n else None for n in names]
    outputs = llm.generate([PROMPT] * len(names), PARAMS, lora_request=requests, use_tqdm=False)
    assert tokens(outputs) == [wanted[name] for name in names]
    stats = llm.stats()
    assert stats.compiles_after_ready == 0
    assert stats.adapter_misses >= 3


def test_a_changed_adapter_of_the_same_name_reuses_no_block(llm, folders, wanted, tmp_path):
    moving = shutil.copytree(folders["a"], tmp_path / "moving")
    asked = LoRARequest("one", 1, str(moving))
    assert tokens(llm.generate(PROMPT, PARAMS, lora_request=asked, use_tqdm=False)) == [wanted["a"]]
    shutil.copytree(folders["c"], moving, dirs_exist_ok=True)
    again = LoRARequest("one", 1, str(moving), load_inplace=True)
    assert tokens(llm.generate(PROMPT, PARAMS, lora_request=again, use_tqdm=False)) == [wanted["c"]]
    assert tokens(llm.generate(PROMPT, PARAMS, use_tqdm=False)) == [wanted[""]]


def test_files_that_change_after_they_were_read_are_never_served_in_silence(
    llm, folders, wanted, tmp_path
):
    """Two adapters are kept on the host, so that the others are read again."""
    moving = shutil.copytree(folders["a"], tmp_path / "moving")
    paths = {"one": moving, "b": folders["b"], "c": folders["c"]}
    for name, path in paths.items():
        llm.load_adapter(name, str(path))

    def ask(name):
        output = llm.generate(PROMPT, PARAMS, lora_request=LoRARequest(name), use_tqdm=False)
        return tokens(output)[0]

    assert [ask(name) for name in ("b", "c")] == [wanted["b"], wanted["c"]]
    shutil.copytree(folders["c"], moving, dirs_exist_ok=True)
    with pytest.raises(AdapterUnavailable, match="has changed since it was loaded"):
        ask("one")
    shutil.rmtree(moving)
    with pytest.raises(AdapterUnavailable, match="adapter_config.json: cannot be read"):
        ask("one")
    assert ask("b") == wanted["b"]
    shutil.copytree(folders["a"], moving)
    assert ask("one") == wanted["a"]


def test_by_name_with_n_and_chat(llm, folders, wanted):
    llm.load_adapter("b", str(folders["b"]))
    several = PARAMS.replace(n=3)
    (output,) = llm.generate(PROMPT, several, lora_request=LoRARequest("b"), use_tqdm=False)
    assert [part.token_ids for part in output.outputs] == [wanted["b"]] * 3
    llm.unload_adapter("b")
    with pytest.raises(RequestError, match="not loaded; give lora_path"):
        llm.generate(PROMPT, PARAMS, lora_request=LoRARequest("b"), use_tqdm=False)
    with pytest.raises(ModelNotFound, match="cannot be found"):
        llm.unload_adapter("b")


def test_wrong_adapters_are_refused_and_the_engine_goes_on(llm, folders, wanted, tmp_path):
    wide = save_adapter(
        tmp_path / "wide", random_tensors(modules_of(LLAMA), 32), r=32, lora_alpha=32
    )
    other = save_adapter(tmp_path / "other", random_tensors({"model.layers.0.mlp.gate": (4, 4)}))
    for path, said in ((wide, "rank 32"), (other, "no such linear"), (tmp_path / "none", "none")):
        with pytest.raises(AdapterError, match=said):
            llm.load_adapter("x", str(path))
    with pytest.raises(RequestError, match="2 prompts but 1 lora_requests"):
        llm.generate([PROMPT] * 2, PARAMS, lora_request=[None], use_tqdm=False)
    llm.load_adapter("x", str(folders["a"]))
    with pytest.raises(RequestError, match="already been loaded with other content"):
        llm.load_adapter("x", str(folders["b"]))
    asked = LoRARequest("x")
    assert tokens(llm.generate(PROMPT, PARAMS, lora_request=asked, use_tqdm=False)) == [wanted["a"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_loras": 0}, "max_loras is 0"),
        ({"max_lora_rank": 12}, "max_lora_rank is 12; supported"),
        ({"max_loras": 4, "max_cpu_loras": 2}, "less than max_loras"),
        ({"lora_eviction": "fifo"}, "supported: lru, lfu"),
        ({"max_cpu_lora_bytes": 1000}, "max_cpu_lora_bytes is 1000; one adapter of rank 16"),
        ({"lora_target_modules": ["z_proj"]}, "no such linear"),
    ],
)
def test_options_that_cannot_be_are_refused(options, given, said):
    with pytest.raises(ConfigError, match=said):
        LLM(**options, enable_lora=True, **given)


def test_without_slots_adapters_are_refused(options, folders):
    with LLM(**options) as llm, pytest.raises(RequestError, match="enable_lora=True"):
        llm.load_adapter("a", str(folders["a"]))


def test_adapters_by_nxdi_s_names_are_served_from_the_start(options, folders, wanted):
    lora = {
        "max_loras": 2, "max_lora_rank": 16, "eviction_policy": "lfu", "lfu_decay_period": 4,
        "lora_ckpt_paths": {"a": str(folders["a"])},
    }  # fmt: skip
    modules = [{"name": "b", "path": str(folders["b"])}]
    own = {"lora_config": lora, "lora_modules": modules}
    with LLM(**options, override_neuron_config=own, lora_modules=[f"c={folders['c']}"]) as llm:
        requests = [LoRARequest(name) for name in "abc"]
        outputs = llm.generate([PROMPT] * 3, PARAMS, lora_request=requests, use_tqdm=False)
    assert tokens(outputs) == [wanted[name] for name in "abc"]


def test_a_pinned_adapter_stays_while_others_come_and_go(llm, folders, wanted):
    for name in SHAPES:
        llm.load_adapter(name, str(folders[name]))
    llm.pin_adapter("a")
    for name in ("a", "b", "c", "b", "a"):
        output = llm.generate(PROMPT, PARAMS, lora_request=LoRARequest(name), use_tqdm=False)
        assert tokens(output) == [wanted[name]]
    assert llm.stats().adapter_misses == 4, "a is moved once"
    llm.pin_adapter("b")
    with pytest.raises(AdapterUnavailable, match="2 slots"):
        llm.generate(PROMPT, PARAMS, lora_request=LoRARequest("c"), use_tqdm=False)
    llm.pin_adapter("b", is_pinned=False)
    output = llm.generate(PROMPT, PARAMS, lora_request=LoRARequest("c"), use_tqdm=False)
    assert tokens(output) == [wanted["c"]]


def test_a_hub_id_is_an_adapter_and_what_is_wrong_with_it_is_the_adapter_s(
    llm, folders, wanted, monkeypatch
):
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **given: str(folders[name.removeprefix("org/")])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    asked = LoRARequest("hub", 1, "org/a")
    assert tokens(llm.generate(PROMPT, PARAMS, lora_request=asked, use_tqdm=False)) == [wanted["a"]]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AdapterError, match="org/b is a hub id, and the package"):
        llm.load_adapter("other", "org/b")


def test_a_wrong_adapter_of_the_start_is_refused(options, folders):
    with pytest.raises(AdapterError, match="nowhere"):
        LLM(**options, enable_lora=True, max_loras=2, lora_modules=["a=/nowhere"])
