"""What `ranvier plan` says beforehand is what `ranvier compile` then makes."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from jaxlib.mlir import ir
from tests.parity.test_parity import GOLDENS

from ranvier.build.neuron.lint import _name, _trip_count
from ranvier.build.numbers import model_numbers
from ranvier.build.pack import weight_shapes
from ranvier.build.programs import Sizes, programs
from ranvier.build.shard.rank import Parallel
from ranvier.cli.main import main
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from ranvier.targets.axes import Axes
from ranvier.targets.collectives import KINDS, step_collectives
from ranvier.targets.neuron.memory import weight_rows
from ranvier.targets.numbers import MemorySizes


def test_plan_and_compile_agree_on_a_draft_model(capsys, tiny_model):
    sizes = ["--max-model-len", "128", "--max-num-seqs", "2", "--tensor-parallel-size", "2"]
    where = ["--instance", "trn2.48xlarge", "--json"]
    draft = ["--draft", str(tiny_model), "--num-speculative-tokens", "3"]
    assert main(["plan", str(tiny_model), *sizes, *where, *draft]) == 0
    planned = json.loads(capsys.readouterr().out)
    config = {"method": "draft_model", "model": str(tiny_model), "num_speculative_tokens": 3}
    more = ["--target", "neuron-trn2", "--dry-run", "--speculative-config", json.dumps(config)]
    assert main(["compile", str(tiny_model), *sizes, *where, *more]) == 0
    compiled = json.loads(capsys.readouterr().out)
    rows, made = ({r["kind"]: r["bytes"] for r in report["memory"]["rows"]}
                  for report in (planned, compiled))  # fmt: skip
    for kind in ("draft weights", "draft kv cache", "kv cache"):
        assert rows[kind] == made[kind] > 0
    assert any(".k3." in program["name"] for program in compiled["programs"])
    assert all(program["violations"] == [] for program in compiled["programs"])


@pytest.mark.parametrize("slots", [(), ("--max-loras", "3")], ids=["", "adapters"])
@pytest.mark.parametrize("degree", ["1", "2"])
def test_plan_and_compile_agree_on_programs_and_memory(capsys, tiny_model, degree, slots):
    sizes = ["--max-model-len", "128", "--max-num-seqs", "2", "--tensor-parallel-size", degree]
    sizes += slots
    where = ["--instance", "trn2.48xlarge", "--json"]
    assert main(["plan", str(tiny_model), *sizes, *where]) == 0
    planned = json.loads(capsys.readouterr().out)
    target = ["--target", "neuron-trn2", "--dry-run", *(["--enable-lora"] if slots else [])]
    assert main(["compile", str(tiny_model), *sizes, *where, *target]) == 0
    compiled = json.loads(capsys.readouterr().out)
    assert planned["memory"]["rows"] == compiled["memory"]["rows"]
    assert planned["memory"]["limit_bytes"] == compiled["memory"]["limit_bytes"]
    assert planned["fits"] is compiled["fits"] is True
    own = planned["buckets"]
    names = [f"prefill.t{t}.c{c}" for t in own["prefill_tokens"] for c in own["contexts"] if t <= c]
    names += [f"decode.r{r}.c{c}" for r in own["decode_rows"] for c in own["contexts"]]
    made = [program["name"] for program in compiled["programs"]]
    assert sorted(names) == sorted(name for name in made if name != "adapter.place")
    assert ("adapter.place" in made) is bool(slots)
    assert own["program_count"] == len(names)


def resolved(family):
    return resolve(json.loads((GOLDENS / family / "config.json").read_text()))


@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_planned_weights_are_those_of_the_packed_arrays(family, tensor, stages):
    spec = resolved(family)
    if spec.layers % stages:
        pytest.skip("stages that do not divide the layers")
    shapes = weight_shapes(spec, "bfloat16", "reference", Parallel(tensor, stages))
    names = {array.name for array in spec.arrays}
    packed = sum(math.prod(s) * np.dtype(k).itemsize for n, (s, k) in shapes.items() if n in names)
    sizes = MemorySizes(max_model_len=128, max_num_seqs=4, max_num_batched_tokens=32)
    rows = weight_rows(model_numbers(spec, family), sizes, tensor, stages)
    bias = sum(math.prod(s) * 2 for n, (s, _) in shapes.items() if n == "qkv_bias")
    assert abs(sum(row.bytes for row in rows) - packed) <= bias + len(rows)


def bytes_of(kind):
    kind = ir.RankedTensorType(kind)
    return math.prod(kind.shape) * {"f32": 4, "i32": 4, "bf16": 2}[str(kind.element_type)]


def counted(module):
    """(kind, bytes of a call, ranks) -> calls, of a step: loops as often as they run."""
    functions = {ir.StringAttr(op.attributes["sym_name"]).value: op.operation
                 for op in module.body.operations}  # fmt: skip
    found = Counter()

    def walk(op, times):
        for inner in (op for region in op.regions for block in region for op in block):
            name = _name(inner.operation)
            if name in KINDS:
                size = max(map(bytes_of, [inner.operands[0].type, inner.results[0].type]))
                groups = "source_target_pairs" if "permute" in name else "replica_groups"
                shape = ir.DenseElementsAttr(inner.attributes[groups]).type.shape
                found[name, size, shape[1 if "permute" not in name else 0]] += times
            if name == "call":
                walk(functions[ir.FlatSymbolRefAttr(inner.attributes["callee"]).value], times)
            # Kernels have loops whose end is data; a collective in one would be missed, and told.
            walk(inner, times * (_trip_count(inner) or 0) if name == "while" else times)

    walk(functions["main"], 1)
    return found


@pytest.mark.parametrize("axes", [
    (2, 1, False), (8, 1, False), (8, 1, True), (1, 3, False), (2, 3, False), (4, 3, True),
])  # fmt: skip
def test_planned_collectives_are_those_of_the_lowered_programs(axes):
    tensor, stages, is_sequence = axes
    spec = resolved("llama")
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=6,
        block_tokens=32, block_count=17, kv_layout="block", logprobs_max=20, edits_max=10,
        buckets=BucketSet(tokens=(8, 30), prefill_tokens=(32,), decode_rows=(6,), contexts=(128,)),
        tensor_parallel=tensor, pipeline_parallel=stages, sequence_parallel=is_sequence,
    )  # fmt: skip
    numbers = model_numbers(spec, "llama")
    spread = Axes(stages=stages, is_sequence=is_sequence)
    for program in programs(spec, sizes):
        planned = Counter()
        for call in step_collectives(numbers, program.shape, tensor, spread, 2):
            ranks = tensor * stages if call.kind == "collective_permute" else call.ranks
            planned[call.kind, call.bytes, ranks] += call.count
        assert counted(program.module("neuron")) == planned, program.name
