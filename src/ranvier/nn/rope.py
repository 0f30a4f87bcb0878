"""Rotary position embedding: tables once a step, rotation of halves."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

__all__ = ["axial_tables", "rotate", "tables"]


def tables(positions_T: Array, inv_freq_PE: Array, scale_P: Array) -> Array:
    """Cosines and sines of every rope: f32 [P, 2, T, E/2]."""
    angles = positions_T.astype(jnp.float32)[None, :, None] * inv_freq_PE[:, None, :]
    both = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return both * scale_P[:, None, None, None]


def axial_tables(positions_AT: Array, inv_freq_PE: Array, scale_P: Array, axes_AE: Array) -> Array:
    """As `tables` of positions on several axes; axes_AE is 1 where an axis turns a frequency."""
    positions = positions_AT.astype(jnp.float32)
    turning_TE = jnp.sum(positions[:, :, None] * axes_AE[:, None, :], axis=0)
    angles = turning_TE[None] * inv_freq_PE[:, None, :]
    both = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return both * scale_P[:, None, None, None]


def rotate(x_THE: Array, cos_sin: Array) -> Array:
    """Rotate the two halves of each head by the angles [2, T, E/2]."""
    cos, sin = cos_sin[0][:, None, :], cos_sin[1][:, None, :]
    first, second = jnp.split(x_THE, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
