"""Models over several ranks give the tokens of one: families, heads that don't divide, stages."""

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
from ranvier.build.shard.rank import ONE, Parallel, heads_of
from ranvier.core.errors import ConfigError
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.quantise.loading import QuantisingCheckpoint
from ranvier.weights.quantise.scheme import parse_scheme
from ranvier.weights.safetensors_write import save_safetensors
from tests.conftest import byte_tokenizer

SCRIPT = Path(__file__).parent / "over_ranks.py"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 161, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "eos_token_id": 2,
}  # fmt: skip
ODD = {**LLAMA, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 100,
       "tie_word_embeddings": False}  # fmt: skip
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 8}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False}
GEMMA3 = {
    **LLAMA, "architectures": ["Gemma3ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24,
}  # fmt: skip
MODELS = {"llama": LLAMA, "odd": ODD, "qwen2": QWEN2, "qwen3": QWEN3, "gemma3": GEMMA3}
DEGREES = {
    "llama": [(8, 1), (4, 1), (2, 1), (2, 2), (1, 2), (1, 4)], "odd": [(8, 1), (4, 1), (2, 1)],
    "qwen2": [(8, 1), (2, 2)], "qwen3": [(4, 1)], "gemma3": [(8, 1), (1, 2)],
}  # fmt: skip
SEQUENCE = [("llama", (8, 1)), ("llama", (2, 2)), ("odd", (4, 1)), ("gemma3", (4, 1))]
"""Where norms are cut along the tokens; some of the buckets don't divide."""


def make_model(folder, config):
    """A folder with random weights of a config."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(byte_tokenizer(160))
    rng, tensors = np.random.default_rng(3), {}
    spec = resolve(config)
    rows = {"q_proj": spec.heads, "k_proj": spec.kv_heads, "v_proj": spec.kv_heads}
    for array in spec.arrays:
        for names in array.sources:
            for name in names:
                shape = list(array.shape[1:])
                part = next((p for p in rows if p in name), None)
                shape[0] = rows[part] * spec.head_size if part else shape[0] // len(names)
                tensors[name] = rng.normal(0, 0.3, shape).astype(np.float32)
    save_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, config) for name, config in MODELS.items()}


def case(models, name, tensor, pipeline, **more):
    options = {"model": str(models[name]), "tensor_parallel_size": tensor,
               "pipeline_parallel_size": pipeline, **more}  # fmt: skip
    told = more.get("quantization", "sequence" if "sequence_parallel" in more else "")
    return {"name": f"{name} {tensor} {pipeline} {told}", "options": options}


def run(folder, cases):
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line["tokens"] for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def tokens(models, artifacts):
    """Of every model at every degree, of two of them quantised too; twice 8 ranks come first."""
    wanted = [case(models, n, *d) for n, degrees in DEGREES.items() for d in (*degrees, (1, 1))]
    wanted += [case(models, n, *d, sequence_parallel=True) for n, d in SEQUENCE]
    wanted += [case(models, "llama", d, 1, quantization="int8") for d in (2, 1)]
    return run(artifacts, wanted)


@pytest.mark.parametrize(("name", "degree"), [(n, d) for n, all_ in DEGREES.items() for d in all_])
def test_ranks_give_the_tokens_of_one(tokens, name, degree):
    assert tokens[f"{name} {degree[0]} {degree[1]} "] == tokens[f"{name} 1 1 "]


@pytest.mark.parametrize(("name", "degree"), SEQUENCE)
def test_norms_cut_along_tokens_give_the_tokens_of_one(tokens, name, degree):
    assert tokens[f"{name} {degree[0]} {degree[1]} sequence"] == tokens[f"{name} 1 1 "]


def test_quantised_ranks_give_the_tokens_of_one(tokens):
    assert tokens["llama 2 1 int8"] == tokens["llama 1 1 int8"]


def test_an_artifact_holds_a_file_a_rank_and_loads_again(models, artifacts, tokens):
    found = [read_manifest(path.parent) for path in artifacts.glob("*/manifest.json")]
    keys = {(m.key.tensor_parallel, m.key.pipeline_parallel, m.key.quantization) for m in found}
    assert (2, 2, "none") in keys
    for manifest in found:
        files = [name for name in manifest.files if name.startswith("weights")]
        assert len(files) == manifest.key.ranks
        assert verify(artifacts / manifest.key.name) == []
    again = case(models, "llama", 2, 2, require_artifacts=True)
    assert run(artifacts, [again])[again["name"]] == tokens["llama 1 1 "]


@pytest.mark.parametrize("cores", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", ["llama", "odd", "qwen2"])
def test_every_head_is_on_a_core_with_its_own_keys(name, cores):
    spec = resolve(MODELS[name])
    group, seen = spec.heads // spec.kv_heads, []
    for core in range(cores):
        own = heads_of(spec, cores, core)
        each = len(own.query) // len(own.kv)
        for place, head in enumerate(own.query):
            if head >= 0:
                assert own.kv[place // each] == head // group
                seen.append(head)
    assert seen == list(range(spec.heads))


def test_the_parts_of_all_ranks_are_little_more_than_the_model(tmp_path):
    config = {**LLAMA, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 16,
              "num_key_value_heads": 8, "vocab_size": 2048}  # fmt: skip
    checkpoint = open_checkpoint(make_model(tmp_path / "m", config))
    spec, form = resolve(config), Form("float32", "cpu")

    def size(parallel):
        shards = [Shard(spec, parallel, rank) for rank in range(parallel.ranks)]
        return sum(
            part.nbytes for _, parts in pack_ranks(checkpoint, shards, form) for part in parts
        )

    assert size(Parallel(8, 1)) <= 1.2 * size(ONE)
    assert size(Parallel(2, 2)) <= 1.2 * size(ONE)


def test_torn_groups_and_layers_are_refused_with_what_is_possible(models):
    import ranvier

    spec = resolve(LLAMA)
    scheme = parse_scheme("int4")
    checkpoint = QuantisingCheckpoint(open_checkpoint(models["llama"]), scheme)
    shards = [Shard(spec, Parallel(4, 1), rank) for rank in range(4)]
    with pytest.raises(ConfigError, match="groups of .* not cut") as caught:
        list(pack_ranks(checkpoint, shards, Form("float32", "cpu", is_quantised=True)))
    assert "Possible here are 1" in caught.value.hint
    with pytest.raises(ConfigError, match="does not divide the model's 4 layers") as caught:
        ranvier.LLM(str(models["llama"]), pipeline_parallel_size=3)
    assert caught.value.hint == "Possible are 1, 2, 4."
    with pytest.raises(ConfigError, match="tensor_parallel_size must be a positive"):
        ranvier.LLM(str(models["llama"]), tensor_parallel_size=0)
