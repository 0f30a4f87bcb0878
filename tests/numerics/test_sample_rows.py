"""A vocabulary that is cut over ranks is sampled as a whole one, and no rank gathers it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ranvier.build.neuron.lint import lint, read_facts
from ranvier.build.programs import Sizes, programs
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from ranvier.targets.neuron.legality import ALL
from tests.numerics.isa import NEEDS_KERNELS
from tests.parity.test_parity import GOLDENS


@NEEDS_KERNELS
def test_every_parameter_draws_over_ranks_what_one_rank_draws():
    command = [sys.executable, "-m", "tests.numerics.sample_rows"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=root
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compared"] > 1000
    assert found["wrong"] == []


@pytest.mark.parametrize(("tensor", "pipeline"), [(8, 1), (2, 3)])
def test_no_rank_holds_more_logits_than_its_share_of_rows(tensor, pipeline):
    spec = resolve(json.loads((GOLDENS / "llama" / "config.json").read_text()))
    rows, ranks = 4, tensor * pipeline
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=rows,
        block_tokens=32, block_count=17, kv_layout="block", logprobs_max=5, edits_max=10,
        buckets=BucketSet(prefill_tokens=(32,), decode_rows=(rows,), contexts=(128,)),
        tensor_parallel=tensor, pipeline_parallel=pipeline,
    )  # fmt: skip
    for program in programs(spec, sizes):
        module = program.module("neuron")
        own = -(-program.shape.samples // ranks)
        facts = list(read_facts(module))
        wide = [t.shape for f in facts for t in f.results if t.shape[-1:] == (spec.vocab_size,)]
        assert wide
        assert max(shape[0] for shape in wide if len(shape) == 2) == own, program.name
        (exchange,) = [f for f in facts if f.name == "all_to_all"]
        assert exchange.location.startswith("sample/"), exchange
        for target in ALL:
            assert [str(v) for v in lint(module, target)] == [], program.name
