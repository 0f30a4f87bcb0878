"""What adapters add to a linear: the kernels equal float64 on every ISA, mixed and alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.build.quantised import pack_stack
from ranvier.core.adapter import AdapterWeights
from ranvier.native import library
from ranvier.nn.kernels.linear import Quantised, cpu, reference
from ranvier.nn.kernels.linear.pack import pack_layer
from ranvier.nn.kernels.lora import Lora, LoraPart
from ranvier.weights.lora.form import AdapterForm, AdapterModule, stack_shapes
from ranvier.weights.lora.pack import pack_adapter
from ranvier.weights.lora.read import Lora as Pairs
from ranvier.weights.lora.read import LoraPair
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import parse_scheme
from tests.numerics.isa import ISAS, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS

LAYERS, LAYER, SLOTS = 2, 1, 3
INPUTS = 80
FUSED = {
    "qkv": {"q": (0, 40), "k": (40, 8), "v": (48, 24)},
    "gate_up": {"g": (0, 56), "u": (56, 56)},
    "o": {"o": (0, 72)},
}
"""Part -> first output, outputs: k and v begin within tiles of 16."""


@pytest.fixture(params=ISAS)
def isa(request):
    library.set_isa(request.param)
    yield request.param
    library.set_isa(None)


def form_of(linear, kernels, dtype, rank_max=64):
    modules = tuple(
        AdapterModule("{}." + name, linear, INPUTS, count, start)
        for name, (start, count) in FUSED[linear].items()
    )
    return AdapterForm(kernels, dtype, LAYERS, SLOTS, rank_max, modules)


def random_pairs(random, linear, ranks):
    """An adapter with the given rank a part; 0: without it."""
    pairs = {}
    for name, rank in ranks.items():
        for layer in range(LAYERS) if rank else ():
            a = random.standard_normal((rank, INPUTS)).astype(np.float32) / 9
            b = random.standard_normal((FUSED[linear][name][1], rank)).astype(np.float32) / 3
            pairs[f"{layer}.{name}"] = LoraPair(a, b)
    return Pairs("", max(ranks.values()), pairs)


def stacks_of(form, adapters):
    """The device's arrays with adapter i in slot i + 1; what is not written is poisoned."""
    shapes = stack_shapes(form)
    arrays = {name: np.full(s, 0 if "table" in name else 7, k) for name, (s, k) in shapes.items()}
    for i, adapter in enumerate(adapters):
        packed: AdapterWeights = pack_adapter(adapter, form)
        for name, array in packed.arrays.items():
            arrays[name][i, : len(array[0])] = array[0]
        if form.kernels == "cpu":
            arrays["lora.table"][i] = packed.table[0]
    return [jnp.asarray(arrays[name]) for name in sorted(arrays)]


def make(linear, ranks_of_slots, rows, seed=0):
    random = np.random.default_rng(seed)
    outputs = sum(count for _, count in FUSED[linear].values())
    x = random.standard_normal((rows, INPUTS)).astype(np.float32)
    w = (random.standard_normal((LAYERS, outputs, INPUTS)) / 9).astype(np.float32)
    adapters = [random_pairs(random, linear, ranks) for ranks in ranks_of_slots]
    return x, w, adapters


def run(linear, kernels, dtype, made, slots, weight=None, **options):
    x, w, adapters = made
    form, gate = form_of(linear, kernels, dtype), "silu" if linear == "gate_up" else None
    parts = tuple(LoraPart(i, m.start, m.outputs) for i, m in enumerate(form.modules))
    lora = Lora(jnp.asarray(slots, jnp.int32), *stacks_of(form, adapters), parts)
    if weight is None:
        cut = (lambda one: np.split(one, 2)) if gate else (lambda one: [one])
        packed = [
            pack_layer(cut(one), is_gated=bool(gate), dtype=dtype, kernels=kernels) for one in w
        ]
        weight = jnp.asarray(np.stack(packed))
    function = {"cpu": cpu.linear, "reference": reference.linear}[kernels]
    layer, count = jnp.array([LAYER], jnp.int32), jnp.array([len(x)], jnp.int32)
    call = jax.jit(lambda x, weight, lora: function(
        x, weight, layer, count, outputs=w.shape[1], gated=gate,
        lora=Lora(*lora, parts), **options))  # fmt: skip
    return np.asarray(call(jnp.asarray(x), weight, (lora.slots_T, lora.a, lora.b)), np.float64)


def wanted(linear, x, w, adapters, slots):
    """In float64, row by row, as a merged weight would give it."""
    rows = []
    for row, slot in zip(x.astype(np.float64), slots, strict=True):
        whole = w[LAYER].astype(np.float64)
        if slot:
            whole = whole.copy()
            for name, (start, count) in FUSED[linear].items():
                pair = adapters[slot - 1].pairs.get(f"{LAYER}.{name}")
                if pair is not None:
                    whole[start : start + count] += pair.b.astype(np.float64) @ pair.a
        rows.append(whole @ row)
    y = np.stack(rows)
    if linear == "gate_up":
        gate, up = np.split(y, 2, axis=1)
        y = gate / (1 + np.exp(-gate)) * up
    return y


RANKS = {
    "qkv": [{"q": 16, "k": 0, "v": 8}, {"q": 3, "k": 64, "v": 1}, {"q": 0, "k": 0, "v": 24}],
    "gate_up": [{"g": 16, "u": 16}, {"g": 0, "u": 40}, {"g": 5, "u": 0}],
    "o": [{"o": 8}, {"o": 33}, {"o": 64}],
}
MIXED = [2, 0, 1, 3, 1, 0, 2, 2, 3, 1, 0]


@pytest.mark.parametrize("linear", FUSED)
def test_f32_equals_the_merged_weight(isa, linear):
    x, w, adapters = make(linear, RANKS[linear], len(MIXED))
    got = run(linear, "cpu", "float32", (x, w, adapters), MIXED)
    assert np.abs(got - wanted(linear, x, w, adapters, MIXED)).max() < 2e-5
    plain = run(linear, "reference", "float32", (x, w, adapters), MIXED)
    assert np.abs(got - plain).max() < 2e-5


@pytest.mark.parametrize("linear", FUSED)
def test_bf16_is_near_and_equals_the_reference(isa, linear):
    x, w, adapters = make(linear, RANKS[linear], len(MIXED))
    got = run(linear, "cpu", "bfloat16", (x, w, adapters), MIXED)
    want = wanted(linear, x, w, adapters, MIXED)
    plain = run(linear, "reference", "bfloat16", (x, w, adapters), MIXED)
    assert np.abs(got - want).max() < 0.15
    assert np.abs(got - plain).max() < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("linear", FUSED)
def test_a_row_is_bit_equal_alone_and_beside_any_adapter(isa, linear, dtype):
    slots = MIXED * 13  # 143 rows: several units of one adapter
    x, w, adapters = make(linear, RANKS[linear], len(slots))
    whole = run(linear, "cpu", dtype, (x, w, adapters), slots)
    for row in (0, 1, 2, 3, 77, 142):
        alone = run(linear, "cpu", dtype, (x[row : row + 1], w, adapters), slots[row : row + 1])
        assert np.array_equal(alone[0], whole[row])


def test_a_batch_without_adapters_is_the_bare_linear():
    x, w, adapters = make("o", RANKS["o"], 5)
    got = run("o", "cpu", "bfloat16", (x, w, adapters), [0] * 5)
    bare = run("o", "cpu", "bfloat16", (x, w, []), [0] * 5)
    assert np.array_equal(got, bare)


def test_norm_residual_and_threads(isa):
    x, w, adapters = make("o", RANKS["o"], len(MIXED))
    norm = (jnp.ones((LAYERS, INPUTS)), 1e-6)
    residual = np.ones((len(MIXED), 72), np.float32)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6)
    try:
        library.set_threads(1)
        one = run("o", "cpu", "float32", (x, w, adapters), MIXED, norm=norm, residual=residual)
    finally:
        library.set_threads(2)
    two = run("o", "cpu", "float32", (x, w, adapters), MIXED, norm=norm, residual=residual)
    assert np.array_equal(one, two)
    assert np.abs(two - wanted("o", normed, w, adapters, MIXED) - 1).max() < 2e-5


def test_a_quantised_base_takes_adapters(isa):
    x, _, adapters = make("o", RANKS["o"], len(MIXED))
    random = np.random.default_rng(1)
    wide = random.standard_normal((LAYERS, 72, INPUTS)).astype(np.float32) / 9
    tensors = [quantise(one, parse_scheme("int8"), "w") for one in wide]
    packed = pack_stack([[tensor] for tensor in tensors], "o")
    weight = Quantised(jnp.asarray(packed.blob), jnp.asarray(packed.table))
    rounded = np.stack([tensor.values() for tensor in tensors])
    got = run("o", "cpu", "float32", (x, rounded, adapters), MIXED, weight=weight)
    assert np.abs(got - wanted("o", x, rounded, adapters, MIXED)).max() < 2e-3


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    ranks=st.lists(st.sampled_from([0, 1, 8, 9, 16, 31, 64]), min_size=9, max_size=9),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_the_kernel_equals_the_reference(rows, ranks, seed, dtype):
    of_slots = [dict(zip("qkv", ranks[3 * i : 3 * i + 3], strict=True)) for i in range(3)]
    x, w, adapters = make("qkv", of_slots, rows, seed)
    slots = np.random.default_rng(seed).integers(0, SLOTS + 1, rows)
    got = run("qkv", "cpu", dtype, (x, w, adapters), slots)
    plain = run("qkv", "reference", dtype, (x, w, adapters), slots)
    assert np.abs(got - plain).max() < (0.06 if dtype == "bfloat16" else 3e-5)


@pytest.mark.parametrize("wrong", ["slot", "place", "rank"])
def test_what_is_out_of_range_is_refused(wrong):
    x, w, adapters = make("o", RANKS["o"], 2)
    form = form_of("o", "cpu", "float32")
    blob, table = stacks_of(form, adapters)
    slots = [SLOTS + 1 if wrong == "slot" else 1] * 2
    column = {"place": 2, "rank": 0}.get(wrong)
    if column is not None:
        table = table.at[0, LAYER, 0, column].set(2**30 if wrong == "place" else 12)
    packed = np.stack(
        [pack_layer([one], is_gated=False, dtype="float32", kernels="cpu") for one in w]
    )
    lora = Lora(jnp.asarray(slots, jnp.int32), blob, table, (LoraPart(0, 0, 72),))
    with pytest.raises(jax.errors.JaxRuntimeError, match="slot or table is out of range"):
        cpu.linear(
            jnp.asarray(x), jnp.asarray(packed), jnp.array([LAYER]), jnp.array([2]), outputs=72,
            lora=lora,
        ).block_until_ready()  # fmt: skip
