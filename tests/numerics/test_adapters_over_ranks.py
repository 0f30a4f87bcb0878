"""Adapters over several ranks give the tokens of one: heads that don't divide, stages, kernels."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ranvier.build.lora.form import adapter_form, linear_shapes
from ranvier.build.programs import Sizes, programs
from ranvier.core.adapter import part_of
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from ranvier.weights.lora.form import form_of, stack_shapes
from ranvier.weights.lora.pack import read_adapter
from tests.adapters import random_tensors, save_adapter
from tests.numerics.test_tensor_parallel import GEMMA3, LLAMA, ODD, make_model

SCRIPT = Path(__file__).parent / "adapters_over_ranks.py"
MODELS = {"llama": LLAMA, "odd": ODD, "gemma3": {**GEMMA3, "tie_word_embeddings": False}}
UNRAGGED = {"program_family": "unragged"}
CASES = [
    ("odd", 4, 1, {}), ("gemma3", 4, 1, {}), ("llama", 4, 1, {"sequence_parallel": True}),
    ("llama", 2, 2, {}), ("odd", 2, 2, UNRAGGED), ("llama", 1, 2, {}),
    ("llama", 2, 1, {"quantization": "int8"}),
]  # fmt: skip


def adapters_of(root, name):
    """One of all linears, one of q and v, and one of a single layer."""
    shapes = linear_shapes(resolve(MODELS[name]))
    chosen = {
        "all": (shapes, 4),
        "qv": ({n: s for n, s in shapes.items() if n.endswith(("q_proj", "v_proj"))}, 16),
        "one": ({n: s for n, s in shapes.items() if ".layers.2." in n}, 8),
    }
    return {
        adapter: str(save_adapter(root / f"{name}-{adapter}",
                                  random_tensors(modules, rank, seed, scale=2.0),
                                  r=rank, lora_alpha=rank))
        for seed, (adapter, (modules, rank)) in enumerate(chosen.items())
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    return {name: (make_model(root / name, MODELS[name]), adapters_of(root, name))
            for name in MODELS}  # fmt: skip


def called(name, tensor, pipeline, more):
    return f"{name} {tensor} {pipeline} {' '.join(map(str, more.values()))}"


@pytest.fixture(scope="module")
def answers(folders, tmp_path_factory):
    single = {called(n, 1, 1, more): (n, 1, 1, more) for n, _, _, more in CASES}
    wanted = [
        {"name": called(name, tensor, pipeline, more), "adapters": folders[name][1],
         "options": {"model": str(folders[name][0]), "tensor_parallel_size": tensor,
                     "pipeline_parallel_size": pipeline, **more}}
        for name, tensor, pipeline, more in (*CASES, *single.values())
    ]  # fmt: skip
    artifacts = tmp_path_factory.mktemp("artifacts")
    command = [sys.executable, str(SCRIPT), str(artifacts), json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES, ids=lambda case: called(*case))
def test_a_mixed_batch_over_ranks_gives_the_tokens_of_one(answers, case):
    name, _, _, more = case
    got, want = answers[called(*case)], answers[called(name, 1, 1, more)]
    assert got["tokens"] == want["tokens"]
    assert got["compiles"] == 0
    each = [want["tokens"][i::4] for i in range(4)]
    assert all(each[i] != each[j] for i in range(4) for j in range(i)), "an adapter changes nothing"


def sizes_of(kernels, tensor, pipeline, **more):
    return Sizes(
        dtype="float32", kernels=kernels, max_model_len=64, max_num_seqs=4, block_tokens=32,
        block_count=9, kv_layout="block", buckets=BucketSet(tokens=(8,)), logprobs_max=1,
        edits_max=4, adapter_slots=2, adapter_rank_max=8, tensor_parallel=tensor,
        pipeline_parallel=pipeline, **more,
    )  # fmt: skip


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 2), (4, 1), (8, 1)])
@pytest.mark.parametrize("name", ["llama", "odd"])
def test_the_products_of_all_parts_are_those_of_the_adapter(folders, name, tensor, pipeline):
    """x A over the cores' inputs adds up; B's outputs are the whole's, but for padding of zeros."""
    spec, (_, adapters) = resolve(MODELS[name]), folders[name]
    whole = read_adapter(Path(adapters["all"]), adapter_form(spec, sizes_of("reference", 1, 1)))
    form = adapter_form(spec, sizes_of("reference", tensor, pipeline))
    cut, ranks, layers = read_adapter(Path(adapters["all"]), form), tensor * pipeline, form.layers
    for layer in range(spec.layers):
        first = layer // layers * tensor
        for linear, side in (("down", "a"), ("o", "a"), ("gate_up", "b"), ("qkv", "b")):
            array, axis = f"lora.{linear}.{side}", 0 if side == "a" else 1
            parts = [part_of(cut.arrays[array], first + core, ranks)[layer % layers]
                     for core in range(tensor)]  # fmt: skip
            together = np.concatenate(parts, axis)
            wanted = whole.arrays[array][0, layer]
            used = {c.tobytes() for c in np.moveaxis(together, axis, 0)}
            assert {c.tobytes() for c in np.moveaxis(wanted, axis, 0)} <= used


def test_what_is_whole_on_every_core_is_held_once(folders):
    form = adapter_form(resolve(MODELS["llama"]), sizes_of("reference", 8, 1))
    adapter = read_adapter(Path(folders["llama"][1]["all"]), form)
    parts = {name: len(array) for name, array in adapter.arrays.items()}
    assert parts == {
        "lora.qkv.a": 1, "lora.qkv.b": 8, "lora.gate_up.a": 1, "lora.gate_up.b": 8,
        "lora.o.a": 8, "lora.o.b": 1, "lora.down.a": 8, "lora.down.b": 1,
    }  # fmt: skip


def test_a_form_over_ranks_survives_the_manifest():
    form = adapter_form(resolve(MODELS["odd"]), sizes_of("cpu", 4, 2))
    assert (form.cores, form.stages, form.layers) == (4, 2, 2)
    fields = json.loads(json.dumps(dataclasses.asdict(form)))
    assert form_of({"adapters": fields}) == form


def test_the_slots_of_a_step_are_those_that_a_placement_fills():
    spec = resolve(MODELS["odd"])
    table = {p.name: p.arguments for p in programs(spec, sizes_of("reference", 4, 1))}
    stacks = stack_shapes(adapter_form(spec, sizes_of("reference", 4, 1)))
    pieces, places, _ = table["adapter.place"]
    for name, (shape, _) in stacks.items():
        assert places[name].shape == table["step.t8"][0][name].shape == shape
        assert pieces[name].shape == shape[2:]
