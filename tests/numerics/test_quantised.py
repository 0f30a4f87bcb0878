"""The whole-number kernel computes what its format says, on every ISA, whatever the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ranvier.build.quantised import pack_stack
from ranvier.core.errors import CheckpointError
from ranvier.native import library
from ranvier.nn.kernels.embed.cpu import embed
from ranvier.nn.kernels.linear import Quantised
from ranvier.nn.kernels.linear.cpu import linear
from ranvier.weights.quantised import QuantTensor, SuperScales
from tests.numerics.isa import ISAS, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS
OUTPUTS, INPUTS, LAYERS = 80, 768, 2


@pytest.fixture(params=ISAS)
def isa(request):
    assert library.set_isa(request.param) == request.param
    yield request.param
    library.set_isa(None)


def halves(rng, *shape):
    values = rng.uniform(0.5, 1.5, shape) * 0.01
    return values.astype(np.float16).astype(np.float32)


def super_scales(rng, shape, group, has_least):
    outer = (shape[0], shape[1] // 256)
    inner = (shape[0], shape[1] // group)
    codes = rng.integers(0, 64, inner) if has_least else rng.integers(-128, 128, inner)
    least = {}
    if has_least:
        least["least_outer"] = halves(rng, *outer).astype(np.float16)
        least["least_codes"] = rng.integers(0, 64, inner).astype(np.uint8)
    return SuperScales(halves(rng, *outer).astype(np.float16), codes.astype(np.int8), **least)


def make(kind, shape, seed):
    """A random matrix of a format: bits, group, and what stands for 0."""
    rng = np.random.default_rng(seed)
    bits, group, zero = kind
    if isinstance(zero, tuple):
        return make_fp8(rng, shape, group or shape[1], zero)
    codes = rng.integers(-127, 128, shape) if bits == 8 else rng.integers(0, 2**bits, shape)
    codes = codes.astype(np.int8 if bits == 8 else np.uint8)
    if zero == "levels":
        return QuantTensor(
            codes=codes, bits=bits, group=group, zero=32 if bits == 6 else 0,
            levels=super_scales(rng, shape, group, bits != 6),
        )  # fmt: skip
    groups = (shape[0], shape[1] // (group or shape[1]))
    fields = {"codes": codes, "bits": bits, "group": group or shape[1]}
    fields["scales"] = halves(rng, *groups)
    if zero == "zeros":
        fields["zeros"] = rng.integers(0, 16, groups).astype(np.uint8)
    elif zero == "offsets":
        fields["offsets"] = -8 * halves(rng, *groups)
    elif zero in ("dynamic", "grouped"):
        fields["activation_bits"] = 8
        fields["activation_group"] = 64 if zero == "grouped" else 0
    else:
        fields["zero"] = zero
    return QuantTensor(**fields)


def make_fp8(rng, shape, group, block):
    """Every e4m3 number but NaN, some of them often small; scales for `block` outputs each."""
    codes = rng.integers(0, 127, shape) | rng.integers(0, 2, shape) << 7
    codes[:, : shape[1] // 2] &= 0x8F if block[1] == "small" else 0xFF
    scales = rng.uniform(0.5, 1.5, (-(-shape[0] // block[0]), shape[1] // group)) * 0.01
    scales = np.repeat(scales.astype(np.float32), block[0], 0)[: shape[0]]
    return QuantTensor(
        codes=codes.astype(np.uint8), bits=8, group=group, kind="fp8", scales=scales
    )  # fmt: skip


FORMATS = {
    "int8": (8, 0, 0), "int8-dynamic": (8, 0, "dynamic"), "q8_0": (8, 32, 0), "q4_0": (4, 32, 8),
    "int4-g128": (4, 128, 8), "int4-asym": (4, 64, "zeros"), "q4_1": (4, 32, "offsets"),
    "q5_0": (5, 32, 16), "q5_1": (5, 32, "offsets"), "q4_k": (4, 32, "levels"),
    "q5_k": (5, 32, "levels"), "q6_k": (6, 16, "levels"), "fp8": (8, 0, (1, "small")),
    "fp8-tensor": (8, 0, (1000, "any")), "fp8-group": (8, 96, (1, "any")),
    "fp8-block": (8, 128, (128, "any")), "int8-grouped": (8, 0, "grouped"),
    "int4-g96": (4, 96, 8), "q5_1-g192": (5, 192, "offsets"),
}  # fmt: skip


def inputs_of(tensor):
    if tensor.kind == "fp8":
        return "halves"
    if tensor.bits < 8:
        return "groups of 32"
    return "groups of 64" if tensor.activation_group else tensor.activation_bits


def rounded(x, bits):
    """Activations as the kernel sees them: whole numbers of `bits` bits a row, of 8 bits a group of
    inputs, or bf16."""
    if bits == "halves":
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    if bits in ("groups of 32", "groups of 64"):
        size = int(bits[-2:])
        return np.concatenate(
            [rounded(x[:, i : i + size], 8) for i in range(0, x.shape[1], size)], axis=1
        )
    top = np.abs(x).max(axis=1, keepdims=True)
    limit = 127 if bits == 8 else 127 * 256 + 127  # two bytes with sign
    return np.rint(x * (np.float32(limit) / top)).astype(np.float64) * top / limit


def stack(layers, **options):
    packed = pack_stack(layers, "test", **options)
    return Quantised(jnp.asarray(packed.blob), jnp.asarray(packed.table))


def run(x, weight, outputs, layer=1, **options):
    call = jax.jit(
        lambda x, w: linear(
            x, w, jnp.array([layer]), jnp.array([len(x)]), outputs=outputs, **options
        )
    )
    return np.asarray(call(jnp.asarray(x), weight), np.float64)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 8, 29])
def test_product_is_the_format_s_own(isa, name, rows):
    tensors = [make(FORMATS[name], (OUTPUTS, INPUTS), seed) for seed in range(LAYERS)]
    x = np.random.default_rng(9).standard_normal((rows, INPUTS)).astype(np.float32)
    out = run(x, stack([[t] for t in tensors]), OUTPUTS)
    wanted = rounded(x, inputs_of(tensors[1])) @ tensors[1].values().astype(np.float64).T
    # Integer sums are exact; what is left is the rounding of scaled sums to f32.
    assert np.abs(out - wanted).max() <= 3e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_never_depends_on_its_neighbours(isa, name):
    weight = stack([[make(FORMATS[name], (OUTPUTS, INPUTS), 3)]])
    x = np.random.default_rng(4).standard_normal((31, INPUTS)).astype(np.float32)
    whole = run(x, weight, OUTPUTS, layer=0)
    for count in (1, 2, 4, 7, 13, 24):
        assert (run(x[:count], weight, OUTPUTS, layer=0) == whole[:count]).all()
        assert (run(x[-count:], weight, OUTPUTS, layer=0) == whole[-count:]).all()


@pytest.mark.parametrize("name", ["int8-grouped", "q4_0", "int4-g96", "q5_1"])
def test_the_last_group_of_inputs_may_be_a_half(name):
    tensor = make(FORMATS[name], (OUTPUTS, 96), 1)
    x = np.random.default_rng(9).standard_normal((5, 96)).astype(np.float32)
    out = run(x, stack([[tensor]]), OUTPUTS, layer=0)
    wanted = rounded(x, inputs_of(tensor)) @ tensor.values().astype(np.float64).T
    assert np.abs(out - wanted).max() <= 3e-6 * np.abs(wanted).max()


def test_parts_of_other_formats_make_one_product():
    kinds = (FORMATS["q4_k"], FORMATS["q6_k"], FORMATS["fp8-block"])
    parts = [make(kind, (48, INPUTS), i) for i, kind in enumerate(kinds)]
    x = np.random.default_rng(5).standard_normal((5, INPUTS)).astype(np.float32)
    out = run(x, stack([parts]), 144, layer=0)
    products = [rounded(x, inputs_of(part)) @ part.values().astype(np.float64).T for part in parts]
    assert np.abs(out - np.concatenate(products, 1)).max() <= 3e-6 * np.abs(out).max()


def test_steps_around_the_product_are_those_of_the_dense_linear():
    gate, up = (make(FORMATS["q4_0"], (40, INPUTS), i) for i in (1, 2))
    rng = np.random.default_rng(6)
    x = rng.standard_normal((9, INPUTS)).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, (1, INPUTS)).astype(np.float32)
    out = run(
        x, stack([[gate, up]], is_gated=True), 80, layer=0, gated="silu",
        norm=(jnp.asarray(norm), 1e-5),
    )  # fmt: skip
    normed = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * norm
    seen = rounded(normed.astype(np.float32), "groups of 32")
    a, b = seen @ gate.values().T, seen @ up.values().T
    wanted = a / (1 + np.exp(-a)) * b
    assert np.abs(out - wanted).max() <= 2e-4 * np.abs(wanted).max()
    down = make(FORMATS["int8"], (OUTPUTS, INPUTS), 7)
    residual = rng.standard_normal((9, OUTPUTS)).astype(np.float32)
    bias = rng.standard_normal((1, OUTPUTS)).astype(np.float32)
    out = run(
        x, stack([[down]]), OUTPUTS, layer=0, residual=jnp.asarray(residual), bias=jnp.asarray(bias)
    )
    wanted = rounded(x, 16) @ down.values().T + residual + bias
    assert np.abs(out - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", FORMATS)
def test_embedding_rows_are_the_matrix_s_rows(isa, name):
    tensor = make(FORMATS[name], (OUTPUTS, INPUTS), 8)
    ids = jnp.asarray([0, 79, 17, 16, 15, 40], jnp.int32)
    call = jax.jit(lambda ids, w: embed(w, ids, hidden=INPUTS, scale=2.0))
    out = np.asarray(call(ids, stack([[tensor]])))
    wanted = 2 * tensor.values()[np.asarray(ids)]
    assert np.abs(out - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "int8-grouped", "q4_k"])
def test_values_that_are_not_finite_are_not_lost(name):
    weight = stack([[make(FORMATS[name], (OUTPUTS, INPUTS), 3)]])
    x = np.ones((2, INPUTS), np.float32)
    x[0, 5] = np.nan
    out = run(x, weight, OUTPUTS, layer=0)
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


def test_a_weight_that_is_not_a_number_is_refused():
    tensor = make(FORMATS["fp8"], (16, 64), 0)
    tensor.codes[3, 4] = 0xFF
    with pytest.raises(CheckpointError, match="layers: a weight is not a number"):
        pack_stack([[tensor]], "layers")


def test_parts_that_do_not_fill_tiles_are_refused():
    parts = [make(FORMATS["q4_0"], (40, INPUTS), i) for i in (1, 2)]
    with pytest.raises(CheckpointError, match="40 outputs"):
        pack_stack([parts], "qkv")


def test_packed_bytes_are_the_bits_and_the_scales():
    inputs, outputs = 1536, 320
    for name, bits in {"int8": 8, "q4_0": 4.5, "q8_0": 8.5, "int4-g128": 4.125, "q4_k": 4.5,
                       "q5_k": 5.5, "q6_k": 6.5625, "fp8": 8, "fp8-tensor": 8,
                       "fp8-block": 8}.items():  # fmt: skip
        packed = pack_stack([[make(FORMATS[name], (outputs, inputs), 0)]], "test")
        assert packed.blob.size * 8 <= 1.03 * bits * inputs * outputs, name
