"""The legality lint: every program of every family is clean; a program against each rule is not."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, PartitionSpec
from jaxlib.mlir import ir

from ranvier.build.eagle.open import open_eagle
from ranvier.build.neuron.lint import lint, read_facts
from ranvier.build.programs import Sizes, programs
from ranvier.core.buckets import BucketSet
from ranvier.models.draft import DraftSpec
from ranvier.models.table import resolve
from ranvier.targets.neuron.legality import ALL, RULES
from ranvier.weights.checkpoint import open_checkpoint
from tests.parity.test_eagle import HEADS, LAYOUTS
from tests.parity.test_parity import FAMILIES, GOLDENS

BUCKETS = BucketSet(prefill_tokens=(32,), decode_rows=(4,), contexts=(64, 128))
F = jax.ShapeDtypeStruct((8, 16), jnp.float32)
I = jax.ShapeDtypeStruct((8, 16), jnp.int32)  # noqa: E741


def lower(function, *shapes):
    traced = jax.jit(function).trace(*shapes)
    return traced.lower(lowering_platforms=("neuron",)).compiler_ir("stablehlo")


def parse(text):
    context = mlir.make_ir_context()
    with context:
        return ir.Module.parse(text, context)


def typed(dtype, shape="4"):
    kind = f"tensor<{shape}x{dtype}>"
    return parse(
        f"func.func public @main(%a: {kind}) -> {kind} {{\n"
        f"  %0 = stablehlo.negate %a : {kind}\n  return %0 : {kind}\n}}"
    )


def call(target, config, shape):
    outputs = (jax.ShapeDtypeStruct((shape.shape[0], 8), shape.dtype),
               jax.ShapeDtypeStruct((shape.shape[0], 8), jnp.int32))  # fmt: skip
    op = jax.ffi.ffi_call(target, outputs, custom_call_api_version=1, legacy_backend_config=config)
    return lower(lambda x: op(x), shape)


def collective():
    mesh = AbstractMesh((8,), ("t",))
    spec = PartitionSpec("t")
    summed = jax.shard_map(lambda x: lax.psum(x, "t"), mesh=mesh, in_specs=spec,
                           out_specs=PartitionSpec(), check_vma=False)  # fmt: skip
    return lower(summed, I)


def draw(x):
    return lax.rng_bit_generator(jnp.zeros(4, jnp.uint32), x.shape, jnp.uint32)[1]


def window(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 4), (1, 1), "VALID", window_dilation=(1, 2))


def convolve(x):
    numbers = lax.conv_dimension_numbers((1, 1, 8, 16), (1, 1, 3, 3), ("NCHW", "OIHW", "NCHW"))
    return lax.conv_general_dilated(
        x[None, None], jnp.ones((1, 1, 3, 3)), (1, 1), ((0, 0), (0, 0)), (2, 2), (2, 2), numbers
    )


BROKEN = {
    "operator": lambda: lower(jnp.fft.rfft, F),
    "dynamic-shape": lambda: typed("f32", "?"),
    "complex": lambda: lower(lax.complex, F, F),
    "f64": lambda: typed("f64"),
    "int64": lambda: typed("i64"),
    "fp8-fnuz": lambda: typed("f8E4M3FNUZ"),
    "fp8-e4m3fn": lambda: typed("f8E4M3FN"),
    "fp4": lambda: typed("f4E2M1FN"),
    "int4": lambda: typed("i4"),
    "integer-dot": lambda: lower(lambda x: x @ x.T, I),
    "integer-collective": collective,
    "integer-scatter": lambda: lower(lambda x: x.at[jnp.array([0, 0])].add(1), I),
    "sort": lambda: lower(jnp.sort, F),
    "sort-form": lambda: lower(jnp.argsort, F),
    "top-k": lambda: lower(lambda x: lax.top_k(x, 3), F),
    "top-k-call": lambda: call("AwsNeuronTopK", "8", I),
    "custom-call": lambda: call("xla_python_cpu_callback", "", F),
    "branch": lambda: lower(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), F),
    "while": lambda: lower(lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + c, x), F),
    "variadic-reduce": lambda: lower(lambda x: jnp.argmax(x, 1), F),
    "reducer": lambda: lower(lambda x: lax.reduce(x, 0.0, lambda a, b: a * b + b, (1,)), F),
    "reduce-window": lambda: lower(window, F),
    "convolution": lambda: lower(convolve, F),
    "shift": lambda: lower(lambda x: x.astype(jnp.int8) >> jnp.int8(1), I),
    "power": lambda: lower(lax.pow, F, F),
    "generator": lambda: lower(draw, F),
    "host": lambda: parse(
        "func.func public @main() -> !stablehlo.token {\n  %0 = stablehlo.create_token : "
        "!stablehlo.token\n  return %0 : !stablehlo.token\n}"
    ),
    "output-size": lambda: lower(lambda x: jnp.broadcast_to(x[0, 0], (2**30 + 1,)), F),
}  # fmt: skip

CLEAN = {
    "cumsum": lambda: lower(lambda x: jnp.cumsum(x, 1), F),
    "scan": lambda: lower(lambda x: lax.scan(lambda c, y: (c + y, c), x[0], x), F),
    "loop": lambda: lower(lambda x: lax.fori_loop(2, 9, lambda i, c: c * 2 + i, x), F),
    "top-k-call": lambda: call("AwsNeuronTopK", "8", F),
    "overwriting scatter": lambda: lower(lambda x: x.at[jnp.array([0, 2])].set(1), I),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_finds_the_program_against_it(rule):
    found = lint(BROKEN[rule.name](), rule.targets[0])
    (violation, *_) = [v for v in found if v.rule == rule.name]
    assert violation.code == rule.code
    assert violation.advice == rule.advice
    assert violation.found


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("target", ALL)
def test_allowed_forms_pass(name, target):
    assert lint(CLEAN[name](), target) == []


def test_rules_bind_their_targets_only():
    sorting, scaled = lower(jnp.sort, I), BROKEN["fp8-e4m3fn"]()
    assert [bool(lint(sorting, target)) for target in ALL] == [False, False, True, True]
    assert [bool(lint(scaled, target)) for target in ALL] == [True, True, True, False]


@pytest.mark.parametrize(("config", "found"), [("0", "k = 0"), ("20000", "k = 20000")])
def test_top_k_outside_its_limits(config, found):
    assert [v.found for v in lint(call("AwsNeuronTopK", config, F), "trn2")] == [found]


def test_a_violation_names_operation_scope_rule_and_advice():
    def step(x):
        with jax.named_scope("sample"), jax.named_scope("pick"):
            return jnp.argmax(x, 1)

    (violation,) = lint(lower(step, F), "trn2")
    assert (violation.op, violation.code) == ("reduce", "EUOC002")
    assert "sample/pick" in violation.location
    assert "argmax is max, compare, iota and min" in str(violation)


def test_trip_counts_are_proven():
    (loop,) = [f for f in read_facts(CLEAN["loop"]()) if f.name == "while"]
    assert loop.form["trip_count"] == 7


CASES = [(f, "block") for f in FAMILIES] + [(f, "contiguous") for f in ("llama", "gemma3")]


@pytest.mark.parametrize(("family", "kv_layout"), CASES)
def test_every_program_of_every_family_is_legal(family, kv_layout):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    block, count = (32, 17) if kv_layout == "block" else (128, 5)
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=4,
        block_tokens=block, block_count=count, kv_layout=kv_layout, buckets=BUCKETS,
        logprobs_max=20, edits_max=100,
    )  # fmt: skip
    table = programs(spec, sizes)
    assert len(table) == 4
    for program in table:
        module = program.lower("neuron").compiler_ir("stablehlo")
        for target in ALL:
            assert [str(v) for v in lint(module, target)] == [], program.name
        loops = [f for f in read_facts(module) if f.name == "while"]
        assert spec.layers in [f.form["trip_count"] for f in loops]


def draft_of(method, spec):
    if method not in LAYOUTS:
        return None if method is None else DraftSpec(method, spec)
    return open_eagle(HEADS / method, open_checkpoint(GOLDENS / "llama"), spec)[1]


@pytest.mark.parametrize(("kv_layout", "method", "ranks"), [
    ("block", "draft_model", 1), ("block", None, 1), ("contiguous", "draft_model", 1),
    *(("block", layout, 1) for layout in LAYOUTS), ("contiguous", "eagle3", 1),
    ("block", "draft_model", 8), ("block", "eagle", 2), ("block", "eagle3", 8),
])  # fmt: skip
def test_programs_that_verify_and_draft_are_legal(kv_layout, method, ranks):
    spec = resolve(json.loads((GOLDENS / "llama" / "config.json").read_text()))
    block, count = (32, 17) if kv_layout == "block" else (128, 5)
    own = dataclasses.replace(BUCKETS, contexts=(128,), drafts=(3,))
    buckets = dataclasses.replace(own, lookahead=3, has_drafter=method is not None)
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=4,
        block_tokens=block, block_count=count, kv_layout=kv_layout, buckets=buckets,
        logprobs_max=20, edits_max=100,
        draft=draft_of(method, spec), tensor_parallel=ranks,
    )  # fmt: skip
    table = programs(spec, sizes)
    assert [p.name for p in table if p.shape.draft] == ["decode.r4.k3.c128"]
    for program in table:
        module = program.module("neuron")
        for target in ALL:
            assert [str(v) for v in lint(module, target)] == [], program.name


@pytest.mark.parametrize(("kv_cache_dtype", "target"), [("fp8-240", "trn2"), ("fp8", "trn3")])
def test_programs_with_an_fp8_cache_are_legal(kv_cache_dtype, target):
    spec = resolve(json.loads((GOLDENS / "llama" / "config.json").read_text()))
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=4,
        block_tokens=32, block_count=17, kv_layout="block", buckets=BUCKETS,
        logprobs_max=20, edits_max=100, kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip
    for program in programs(spec, sizes):
        module = program.lower("neuron").compiler_ir("stablehlo")
        assert [str(v) for v in lint(module, target)] == [], program.name
        assert ("f8E4M3FN" in str(module)) == (target == "trn3")


@pytest.mark.parametrize(("family", "ranks"), [("llama", 1), ("gemma3", 1), ("llama", 8)])
def test_programs_with_slots_of_adapters_are_legal(family, ranks):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=128, max_num_seqs=4,
        block_tokens=32, block_count=17, kv_layout="block", buckets=BUCKETS,
        logprobs_max=20, edits_max=100, adapter_slots=3, adapter_rank_max=16,
        tensor_parallel=ranks,
    )  # fmt: skip
    table = programs(spec, sizes)
    assert table[-1].name == "adapter.place"
    for program in table:
        module = program.module("neuron")
        for target in ALL:
            assert [str(v) for v in lint(module, target)] == [], program.name


@pytest.mark.parametrize("rows", [1, 5])
def test_the_draw_without_cumulative_sum_is_the_first_id_past_the_goal(rows):
    from ranvier.nn.kernels.sample.reference import _first_past

    rng = np.random.default_rng(rows)
    mass = rng.random((rows, 1000)).astype(np.float32) * (rng.random((rows, 1000)) < 0.1)
    for share in (0.0, 0.3, 0.9999999):
        got = np.asarray(jax.jit(_first_past)(mass.astype(np.float32), jnp.full(rows, share)))
        below = np.cumsum(mass.astype(np.float64), 1)
        goal = share * below[:, -1]
        for row in range(rows):
            assert mass[row, got[row]] > 0
            assert below[row, got[row]] >= goal[row] * (1 - 1e-6)
            before = below[row, got[row] - 1] if got[row] else 0.0
            assert before <= goal[row] * (1 + 1e-6)
