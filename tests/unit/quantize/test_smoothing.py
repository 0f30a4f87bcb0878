"""Smoothing: the layer stays the same function, and one loud token does not drown the others."""

from __future__ import annotations

import numpy as np

from ranvier.quantize.smoothing import inputs_of, smooth

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
    inputs = {"qkv": inputs_of(x), "gate_up": inputs_of(y), "down": inputs_of(hidden)}
    smooth(NAMES, dense, vectors, inputs)
    smoothed = x * vectors["attn_norm"]
    np.testing.assert_allclose(smoothed @ dense["q"].T, x @ before["q"].T, rtol=1e-3, atol=1e-3)
    after = y * vectors["mlp_norm"]
    inner = (after @ dense["gate"].T) * (after @ dense["up"].T)
    wanted = hidden @ before["down"].T
    np.testing.assert_allclose(inner @ dense["down"].T, wanted, rtol=1e-3, atol=1e-3)
    peaks = np.abs(smoothed).max(0)
    assert peaks.max() / np.median(peaks) < 10 < np.abs(x).max() / np.median(np.abs(x).max(0))
    np.testing.assert_allclose(inputs["qkv"].peaks, peaks, rtol=1e-5)
    np.testing.assert_allclose(
        np.diag(inputs["qkv"].energy), np.diag(inputs_of(smoothed).energy), rtol=0.5
    )


def test_a_loud_token_counts_like_a_few():
    x = np.random.default_rng(0).normal(0, 1, (500, 8)).astype(np.float32)
    quiet = inputs_of(x).energy
    x[0] *= 1000
    np.testing.assert_allclose(inputs_of(x).energy, quiet, atol=0.1)
    assert inputs_of(x).peaks.max() > 500
