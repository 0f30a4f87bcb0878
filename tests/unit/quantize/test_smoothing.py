"""Smoothing: the layer stays the same function, and one loud token does not drown the others."""

from __future__ import annotations

import numpy as np

from ranvier.quantize.make import moments_of
from ranvier.quantize.smoothing import smooth

NAMES = {"qkv": ("q",), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


def test_products_stay_and_ranges_even_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (2, 64, 16)).astype(np.float32)
    x[:, 3] *= 50
    dense = {name: rng.normal(0, 1, (12, 16)).astype(np.float32) for name in ("q", "gate", "up")}
    dense |= {name: rng.normal(0, 1, (16, 12)).astype(np.float32) for name in ("o", "down")}
    norms = {name: np.ones(16, np.float32) for name in ("attn_norm", "mlp_norm")}
    before, vectors = dict(dense), dict(norms)
    hidden = (y @ dense["gate"].T) * (y @ dense["up"].T)
    inputs = {"qkv": x, "gate_up": y, "down": hidden}
    factors = smooth(NAMES, dense, vectors, {k: np.abs(v).max(0) for k, v in inputs.items()})
    smoothed = x * vectors["attn_norm"]
    np.testing.assert_allclose(smoothed @ dense["q"].T, x @ before["q"].T, rtol=1e-3, atol=1e-3)
    after = y * vectors["mlp_norm"]
    inner = (after @ dense["gate"].T) * (after @ dense["up"].T)
    wanted = hidden @ before["down"].T
    np.testing.assert_allclose(inner @ dense["down"].T, wanted, rtol=1e-3, atol=1e-3)
    peaks = np.abs(smoothed).max(0)
    assert peaks.max() / np.median(peaks) < 10 < np.abs(x).max() / np.median(np.abs(x).max(0))
    np.testing.assert_allclose(smoothed, x / factors["qkv"], rtol=1e-5)
    np.testing.assert_allclose(inner, hidden / factors["down"], rtol=1e-3, atol=1e-3)
    assert set(factors) == {"qkv", "gate_up", "down"}


def test_a_loud_token_counts_like_a_few():
    x = np.random.default_rng(0).normal(0, 1, (500, 8)).astype(np.float32)
    quiet, _ = moments_of(x, x)
    x[0] *= 1000
    loud, _ = moments_of(x, x)
    np.testing.assert_allclose(loud, quiet, atol=0.1)


def test_moments_say_how_far_the_inputs_are_from_the_original_s():
    x = np.random.default_rng(0).normal(0, 1, (4000, 8)).astype(np.float32)
    energy, lag = moments_of(x, 1.5 * x)
    np.testing.assert_allclose(energy, np.eye(8), atol=0.1)
    np.testing.assert_allclose(lag, 0.5 * energy, atol=1e-4)
