"""Encode programs, and the steps of models that see pictures, are legal for Neuron."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ranvier.build.neuron.lint import lint
from ranvier.build.programs import programs
from ranvier.build.vision.encoders import resolve_vision
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from ranvier.targets.neuron.instances import CHIPS
from tests.parity.vision_cases import GOLDENS, PICTURES
from tests.parity.vision_model import sizes_of

BUCKETS = BucketSet(prefill_tokens=(32,), decode_rows=(2,), contexts=(192,))


@pytest.mark.parametrize("family", PICTURES)
def test_every_program_is_legal(family):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    sizes = replace(sizes_of(spec, "reference", "bfloat16"), buckets=BUCKETS)
    table = programs(spec, sizes)
    assert [p.name for p in table][:2] == ["prefill.t32.c192", "decode.r2.c192"]
    assert len(table) == 2 + len(sizes.vision.units)
    for program in table:
        module = program.lower("neuron").compiler_ir("stablehlo")
        assert [str(v) for v in lint(module, "trn2")] == [], program.name


CONFIGS = Path(__file__).parents[1] / "data/configs"


def test_llama_3_2_11b_vision_at_tensor_parallel_8_is_legal_and_fits():
    spec = resolve(json.loads((CONFIGS / "llama-3.2-11b-vision/config.json").read_text()))
    buckets = BucketSet(prefill_tokens=(512,), decode_rows=(4,), contexts=(4096,))
    sizes = replace(
        sizes_of(spec, "reference", "bfloat16"), buckets=buckets, max_model_len=4096,
        max_num_seqs=4, block_count=4 * 4096 // 32 + 1, tensor_parallel=8, logical_cores=2,
        vision=resolve_vision(spec, 4096, 8),
    )  # fmt: skip
    held = {}
    for program in programs(spec, sizes):
        assert [str(v) for v in lint(program.module("neuron"), "trn2")] == [], program.name
        for group in program.arguments[:2]:
            held |= {n: math.prod(x.shape) * x.dtype.itemsize for n, x in group.items()}
    assert {p.name for p in programs(spec, sizes)} == {
        "prefill.t512.c4096", "decode.r4.c4096", "encode.n1", "encode.n2", "encode.n4",
    }  # fmt: skip
    # Weights of text and encoder, both caches: a core's part of each.
    assert sum(held.values()) < CHIPS["neuron-trn2"].hbm_bytes / 8 / 2
