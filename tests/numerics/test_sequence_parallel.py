"""Programs whose norms are cut along the tokens: their collectives, and that they are legal."""

from __future__ import annotations

import json

import pytest

from ranvier.build.neuron.lint import lint, read_facts
from ranvier.build.programs import Sizes, programs
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from ranvier.targets.neuron.legality import ALL
from tests.parity.test_parity import GOLDENS

TOKENS = 64


def table(family, tensor, *, is_on=True, pipeline=1):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=64,
        block_tokens=32, block_count=17, kv_layout="block", logprobs_max=5, edits_max=10,
        buckets=BucketSet(prefill_tokens=(TOKENS,), decode_rows=(64,), contexts=(128,)),
        tensor_parallel=tensor, pipeline_parallel=pipeline, sequence_parallel=is_on,
    )  # fmt: skip
    return spec, {p.shape.family: p for p in programs(spec, sizes)}


def streams(program, hidden):
    """(name, rows of the result) of every collective on the residual stream."""
    facts = read_facts(program.module("neuron"))
    names = ("all_reduce", "reduce_scatter", "all_gather")
    return [(f.name, f.results[0].shape[0]) for f in facts
            if f.name in names and f.results[0].shape[-1] == hidden]  # fmt: skip


@pytest.mark.parametrize("tensor", [2, 8, 64])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_prefill_scatters_and_gathers_instead_of_summing(family, tensor):
    spec, found = table(family, tensor)
    own = TOKENS // tensor
    # The embedding; attention and MLP in the one body of the layers' loop; the sampled row.
    assert sorted(streams(found["prefill"], spec.hidden)) == [
        ("all_gather", TOKENS), ("all_gather", TOKENS), ("all_reduce", 1),
        *[("reduce_scatter", own)] * 3,
    ]  # fmt: skip
    for target in ALL:
        assert [str(v) for v in lint(found["prefill"].module("neuron"), target)] == []


def test_few_tokens_of_a_decode_and_buckets_that_do_not_divide_are_summed_whole():
    spec, found = table("llama", 8)
    assert {name for name, _ in streams(found["decode"], spec.hidden)} == {"all_reduce"}
    spec, found = table("llama", 5)
    assert {name for name, _ in streams(found["prefill"], spec.hidden)} == {"all_reduce"}
    spec, found = table("llama", 8, is_on=False)
    assert {name for name, _ in streams(found["prefill"], spec.hidden)} == {"all_reduce"}


def test_stages_pass_on_their_part_of_the_tokens():
    _, found = table("llama", 2, pipeline=3)
    module = found["prefill"].module("neuron")
    permutes = [f.results[0].shape[0] for f in read_facts(module) if f.name == "collective_permute"]
    assert permutes == [TOKENS // 2]
    assert lint(module, "trn2") == []
