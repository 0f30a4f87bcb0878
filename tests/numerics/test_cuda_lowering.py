"""The ragged programs lower for CUDA without a GPU; nothing of them has run on one."""

from __future__ import annotations

import json

import pytest

from ranvier.build.neuron.lint import read_facts
from ranvier.build.programs import Sizes, programs
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from tests.parity.test_parity import GOLDENS

BLOCKS = 200


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ragged_programs_lower_for_cuda(family):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=2048, max_num_seqs=4, block_tokens=32,
        block_count=BLOCKS, kv_layout="block", buckets=BucketSet(tokens=(4, 64)), logprobs_max=5,
        edits_max=100,
    )  # fmt: skip
    for program in programs(spec, sizes):
        facts = list(read_facts(program.module("cuda")))
        assert not [f for f in facts if f.name == "custom_call"], "a kernel of another target"
        reads = [f for f in facts if f.name == "gather" and f.operands[0].shape[1:2] == (BLOCKS,)]
        keys = [f.results[0].shape for f in reads]
        # A tile's chunk of 512 keys is gathered, never a token's whole context of 2048.
        tiles = program.shape.rows + (program.shape.tokens - program.shape.rows) // 16
        assert keys
        assert all(shape[0] <= tiles and shape[1] * shape[2] <= 512 for shape in keys)
