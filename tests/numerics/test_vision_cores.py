"""Models that see pictures give the tokens of one rank over several: all of it is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ranvier.artifact.read import read_manifest, verify
from ranvier.build.pack import Form, pack_ranks
from ranvier.build.shard.cut import Shard
from ranvier.build.shard.rank import Parallel
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import open_model, plan
from ranvier.core.errors import ConfigError
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.safetensors_write import save_safetensors
from tests.conftest import byte_tokenizer
from tests.parity.vision_cases import GOLDENS

ROOT, SCRIPT = Path(__file__).parents[2], "tests.numerics.vision_cores"
LABELS = {
    "mllama_tiles": ("none", "one", "four"), "qwen3_vl": ("none", "three"),
    "qwen2_5_vl": ("none", "one"), "gemma3": ("none", "two"), "llava": ("none", "two"),
}  # fmt: skip
DEGREES = [
    ("mllama_tiles", 4), ("qwen3_vl", 4), ("mllama_tiles", 2), ("qwen2_5_vl", 2), ("gemma3", 2),
    ("llava", 2),
]  # fmt: skip
QUANTISED = "mllama_tiles"
HEADS = ("num_heads", "attention_heads", "num_attention_heads")


def wider(family):
    """A golden config with four heads everywhere, on two KV heads."""
    config = json.loads((GOLDENS / family / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if family.startswith("mllama"):
        text["hidden_size"] = 64  # its heads have no size of their own
    for name in {*HEADS} & {*vision}:
        vision[name] = 4
    return config


def make_model(folder, family):
    """A folder of random weights; nothing where a published checkpoint has nothing."""
    folder.mkdir(parents=True)
    config = wider(family)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(byte_tokenizer(128))
    spec, rng, tensors = resolve(config), np.random.default_rng(3), {}
    rows = {"q_proj": spec.heads, "k_proj": spec.kv_heads, "v_proj": spec.kv_heads}
    for array in spec.arrays:
        own = not array.name.startswith("vision.") or array.name == "vision.cross_kv"
        for names in array.sources:
            for name in names:
                shape = list(array.shape[1:])
                part = next((p for p in rows if p in name), None) if own else None
                shape[0] = rows[part] * spec.head_size if part else shape[0] // len(names)
                values = rng.normal(0, 0.2, shape[::-1] if array.is_transposed else shape)
                tensors[name] = values.astype(np.float32) * ("tile" not in name)
    save_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("seeing")


@pytest.fixture(scope="module")
def models(root):
    return {family: make_model(root / family, family) for family in LABELS}


@pytest.fixture(scope="module")
def tokens(root, models):
    """By (family, ranks): the tokens of each of its prompts, which run together."""
    cases = [
        {"name": f"{family} {ranks}", "family": family, "labels": LABELS[family],
         "options": {"model": str(models[family]), "tensor_parallel_size": ranks}}
        for family, ranks in (*DEGREES, *((family, 1) for family in LABELS))
    ]  # fmt: skip
    for ranks in (2, 1):
        case = next(case for case in cases if case["name"] == f"{QUANTISED} {ranks}")
        options = {**case["options"], "quantization": "int8"}
        cases.append({**case, "name": f"{QUANTISED} {ranks} int8", "options": options})
    command = [sys.executable, "-m", SCRIPT, str(root / "artifacts"), json.dumps(cases)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {line["name"]: line["tokens"] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(("family", "ranks"), DEGREES)
def test_ranks_give_the_tokens_of_one(tokens, family, ranks):
    assert tokens[f"{family} {ranks}"] == tokens[f"{family} 1"]
    seen = tokens[f"{family} 1"]
    assert len({tuple(own) for own in seen.values()}) == len(LABELS[family])


def test_quantised_ranks_give_the_tokens_of_one(tokens):
    assert tokens[f"{QUANTISED} 2 int8"] == tokens[f"{QUANTISED} 1 int8"]


def test_each_rank_has_its_heads_of_tiles(root, tokens):
    found = [read_manifest(path.parent) for path in (root / "artifacts").glob("*/manifest.json")]
    sizes = {}
    for manifest in found:
        if manifest.key.vision.is_cross and manifest.key.quantization == "none":
            assert verify(root / "artifacts" / manifest.key.name) == []
            kept = int(np.prod(manifest.model["state"]["cross_k"][0]))
            own = manifest.arrays["vision.cross_kv"].size, kept
            sizes[manifest.key.tensor_parallel] = own
    assert sizes[1] == tuple(2 * size for size in sizes[2])
    assert sizes[4] == sizes[2]  # two KV heads: four ranks have each of them twice


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_parts_of_a_tower_are_its_parts_in_order(models, family):
    """q, k and v stored as one, and apart: each core has its own heads of all three."""
    checkpoint = open_checkpoint(models[family])
    spec, form = resolve(checkpoint.config), Form("float32", "reference")
    one = dict(pack_ranks(checkpoint, [Shard(spec, Parallel(), 0)], form))
    two = dict(pack_ranks(checkpoint, [Shard(spec, Parallel(2), r) for r in (0, 1)], form))
    (whole,) = one["vision.qkv"]
    parts = [np.split(own, 3, axis=2) for own in two["vision.qkv"]]
    joined = [np.concatenate(own, axis=2) for own in zip(*parts, strict=True)]
    assert np.array_equal(np.concatenate(joined, axis=2), whole)
    assert np.array_equal(np.concatenate(two["vision.o"], axis=1), one["vision.o"][0])


def test_pictures_over_pipeline_stages_are_refused(models):
    given = {"model": str(models["llava"]), "pipeline_parallel_size": 2, "device": "cpu"}
    options = parse_options(given)
    with pytest.raises(ConfigError, match="pictures over pipeline stages are not supported"):
        plan(options, open_model(options))
