"""The sampling kernel draws what the reference draws, and its thresholds are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.core.layout import SEEN_BIT, MetaLayout
from ranvier.native import library
from ranvier.nn.kernels.sample import cpu, reference
from tests.numerics.isa import ISAS, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS

ROWS, TOP, EDITS = 16, 5, 8
LAYOUT = MetaLayout(ROWS, ROWS, 1)
FLOATS = {"temperature", "top_p", "min_p", "uniform", "repetition", "frequency", "presence"}


@pytest.fixture(params=ISAS)
def isa(request):
    assert library.set_isa(request.param) == request.param
    yield request.param
    library.set_isa(None)


def sample(kernel, logits, edits=None, allowed=None, **fields):
    """int32 [R, 3 + 2K]; fields are scalars or one value a row."""
    rows, vocab = logits.shape
    defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "uniform": 0.5,
                "target_ids": -1, "logprob_counts": TOP}  # fmt: skip
    meta = np.zeros(LAYOUT.size, np.int32)
    meta[2] = rows
    for name, value in {**defaults, **fields}.items():
        field = meta[LAYOUT.slices[name]]
        field = field.view(np.float32) if name in FLOATS else field
        field[:rows] = value
    pad = ROWS - rows
    padded = np.pad(logits, ((0, pad), (0, 0))).astype(np.float32)
    edits = np.zeros((ROWS, EDITS, 3), np.int32) if edits is None else edits
    words = -(-vocab // 32)
    allowed = np.zeros((ROWS, words), np.int32) if allowed is None else allowed
    f = jax.jit(lambda *a: kernel.sample(*a[:2], LAYOUT, *a[2:], top_count=TOP))
    out = f(*map(jnp.asarray, (padded, meta, edits, allowed)))
    return np.asarray(out)[:rows]


def logits_of(vocab, seed=0, rows=ROWS, spread=3.0):
    return spread * np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32)


def uniforms(seed=0, rows=ROWS):
    return np.random.default_rng(seed).random(rows).astype(np.float32)


CASES = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "target_ids": 7},
]


@pytest.mark.parametrize("vocab", [5000, 131, 16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(isa, case, vocab):
    logits = logits_of(vocab)
    options = {**case, "uniform": uniforms()}
    ours, theirs = (sample(k, logits, **options) for k in (cpu, reference))
    assert np.array_equal(ours[:, :2], theirs[:, :2])
    assert np.array_equal(ours[:, 3 : 3 + TOP], theirs[:, 3 : 3 + TOP])
    floats = [x[:, [2, *range(3 + TOP, 3 + 2 * TOP)]].view(np.float32) for x in (ours, theirs)]
    assert np.allclose(*floats, atol=2e-5)


def test_edits_and_mask_equal_the_reference(isa):
    logits, rng = logits_of(1000, 1), np.random.default_rng(5)
    edits = np.zeros((ROWS, EDITS, 3), np.int32)
    for row in edits:
        row[:, 0] = rng.choice(1000, EDITS, replace=False)
        row[:, 1] = rng.integers(0, 4, EDITS) | (rng.integers(0, 2, EDITS) << SEEN_BIT)
        row[:, 2] = rng.standard_normal(EDITS).astype(np.float32).view(np.int32)
    allowed = rng.integers(-(2**31), 2**31, (ROWS, 32)).astype(np.int32)
    options = {"repetition": 1.4, "frequency": 0.3, "presence": 0.8, "edit_counts": EDITS,
               "flags": np.arange(ROWS) % 2, "top_k": 40, "uniform": uniforms(2)}  # fmt: skip
    for temperature in (0.0, 0.9):
        pair = [sample(k, logits, edits, allowed, temperature=temperature, **options)[:, :3]
                for k in (cpu, reference)]  # fmt: skip
        assert np.array_equal(pair[0][:, :2], pair[1][:, :2])


def test_frequencies_follow_the_distribution():
    logits = np.tile(logits_of(40, 3, rows=1, spread=1.0), (ROWS, 1))
    draws = np.concatenate(
        [sample(cpu, logits, uniform=(i + uniforms(i)) / 500)[:, 0] for i in range(500)]
    )
    want = np.exp(logits[0]) / np.exp(logits[0]).sum()
    found = np.bincount(draws, minlength=40) / len(draws)
    assert np.abs(found - want).max() < 4 * np.sqrt(0.25 / len(draws))


def test_ties_at_the_threshold_stay_and_nothing_below(isa):
    logits = np.full((ROWS, 300), -1.0, np.float32)
    logits[:, [3, 70, 200]] = 2.0
    drawn = sample(cpu, logits, top_k=2, uniform=np.linspace(0, 0.9999, ROWS))[:, 0]
    assert set(drawn) == {3, 70, 200}


def test_equal_logits_are_the_worst_case_and_stay_uniform(isa):
    logits = np.zeros((ROWS, 262144), np.float32)
    u = np.linspace(0, 0.999, ROWS).astype(np.float32)
    drawn = sample(cpu, logits, top_p=0.9, uniform=u)[:, 0]
    assert np.abs(drawn - u * 262144).max() <= 1


def test_extreme_logits(isa):
    logits = np.zeros((ROWS, 64), np.float32)
    logits[:, 5] = 3e38
    logits[:, 6] = -np.inf
    out = sample(cpu, logits, temperature=0.5, top_p=0.9, uniform=uniforms())
    assert (out[:, 0] == 5).all()
