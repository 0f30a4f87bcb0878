"""Compensation: products on the calibrated inputs are what counts, and each part of it pays."""

from __future__ import annotations

import numpy as np
import pytest

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise import compensation
from ranvier.weights.quantise.compensation import Compensation
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import parse_scheme

INPUTS, OUTPUTS = 128, 300


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (INPUTS, INPUTS)) * np.geomspace(0.05, 3, INPUTS)
    return (rng.normal(0, 1, (2000, INPUTS)) @ mixing).astype(np.float32)


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(1).normal(0, 1, (OUTPUTS, INPUTS)).astype(np.float32)


def energy(x):
    return x.T @ x / np.float32(len(x))


def damped(x, found, matrix):
    """What is made least: the products' error, and some of the matrix's own."""
    own = energy(x) + np.eye(INPUTS) * np.diag(energy(x)).mean() * compensation.DAMPING
    return (((found - matrix) @ own) * (found - matrix)).sum()


def lost(x, found, wanted):
    return np.square(x @ found.T - wanted).mean() / np.square(wanted).mean()


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128", "int4-g64-asym"])
def test_descent_gains_on_error_feedback_alone(x, matrix, name, monkeypatch):
    scheme = parse_scheme(name)
    after = Compensation("m", energy(x)).quantise(matrix, scheme, "m")
    after.check("m")
    monkeypatch.setattr(Compensation, "_descend", lambda self, wanted, steps, *rest: steps)
    monkeypatch.setattr(Compensation, "_rescale", lambda self, wanted, steps, scales: scales)
    before = Compensation("m", energy(x)).quantise(matrix, scheme, "m")
    assert damped(x, after.values(), matrix) < 0.985 * damped(x, before.values(), matrix)
    assert (after.scales > 0).all() and not (after.scales.view(np.uint32) & 0xFFFF).any()
    assert after.group == before.group and after.codes.dtype == before.codes.dtype


def test_scales_are_those_of_least_error_beside_the_codes(x, matrix):
    made = Compensation("m", energy(x)).quantise(matrix, parse_scheme("int4-g64"), "m")
    least = damped(x, made.values(), matrix)
    for factor in (0.97, 1.03):
        for group in range(2):
            scales = made.scales.copy()
            scales[:, group] *= factor
            steps = made.codes.astype(np.float32) - made.zero
            other = steps * np.repeat(scales, 64, 1)
            assert damped(x, other, matrix) > least


def test_a_matrix_makes_good_what_its_inputs_have_lost(x, matrix):
    """Inputs that the layers before have bent: the product is still the original's."""
    rng = np.random.default_rng(2)
    bent = x @ (np.eye(INPUTS) + rng.normal(0, 0.02, (INPUTS, INPUTS))).astype(np.float32)
    lag = (x - bent).T @ bent / np.float32(len(x))
    wanted, scheme = x @ matrix.T, parse_scheme("int8")
    plain = Compensation("m", energy(bent)).quantise(matrix, scheme, "m")
    moved = Compensation("m", energy(bent), lag).quantise(matrix, scheme, "m")
    assert lost(bent, moved.values(), wanted) < 0.1 * lost(bent, plain.values(), wanted)


def test_inputs_that_are_as_they_were_move_nothing(x, matrix):
    scheme, nothing = parse_scheme("int4-g32"), np.zeros((INPUTS, INPUTS), np.float32)
    plain = Compensation("m", energy(x)).quantise(matrix, scheme, "m")
    made = Compensation("m", energy(x), nothing).quantise(matrix, scheme, "m")
    assert np.array_equal(plain.codes, made.codes) and np.array_equal(plain.scales, made.scales)


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.full((8, 8), np.nan)])
def test_activations_that_say_nothing_are_refused_by_name(bad):
    with pytest.raises(CheckpointError, match=r"layers\.3: its activations .* are not finite"):
        Compensation("layers.3", bad.astype(np.float32))


def test_rows_are_solved_in_parts_alike(x, matrix, monkeypatch):
    whole = Compensation("m", energy(x)).quantise(matrix, parse_scheme("int4"), "m")
    monkeypatch.setattr(compensation, "ROWS", 7)
    parts = Compensation("m", energy(x)).quantise(matrix, parse_scheme("int4"), "m")
    np.testing.assert_allclose(parts.scales, whole.scales, rtol=0.01)
    assert quantise(matrix, parse_scheme("int4"), "m").scales.shape == whole.scales.shape
