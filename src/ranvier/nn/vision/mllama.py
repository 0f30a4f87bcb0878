"""Llama 3.2 Vision's encoder: a picture's tiles together, positions by aspect ratio, gated layers.

Its output is not features of placeholders but keys and values, for the layers of the text side that
attend to tiles.

The reference pads every picture to all tiles, and lets patches see padding; padding sees patches
alone. Tiles of padding that start alike therefore stay alike, and one that weighs as much as all of
them takes their place: that is how published checkpoints are, whose tables of positions hold zeros
for such tiles. Where a checkpoint tells them apart, all tiles are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.nn.kernels.norm.reference import normalise
from ranvier.nn.kernels.table import Kernels
from ranvier.nn.vision.encoder import Shape
from ranvier.nn.vision.tower import Tower, Work

__all__ = ["CrossKeys", "MllamaEncoder", "encode_cross"]

EPS = 1e-5
"""Of the norms around the towers."""


@dataclass(frozen=True)
class MllamaEncoder:
    """Two towers; `keep` are layers of the first whose states are output too.

    A tile has `patches` with its class token, and is padded to `padded` in both towers.
    `has_equal_padding`: tiles of padding are equal, and one stands for all of a picture.
    """

    tower: Tower
    whole: Tower
    tiles: int
    patches: int
    padded: int
    values: int
    width: int
    keep: tuple[int, ...]
    has_equal_padding: bool = True

    def inputs(self, units: int) -> dict[str, Shape]:
        return {
            "pixels": ((units, self.patches - 1, self.values), "float32"),
            "ratio": ((1,), "int32"),
            "count": ((1,), "int32"),
        }

    def outputs(self, units: int) -> int:
        """Rows of a picture: a block of keys a tile."""
        return units

    def computed(self, units: int) -> int:
        """Tiles that go through the towers for a bucket of `units`."""
        return min(units + 1, self.tiles) if self.has_equal_padding else self.tiles

    def encode(self, work: Work, inputs: Mapping[str, Array]) -> Array:
        """What the text side attends to: f32 [units, patches, width]."""
        pixels, ratio = inputs["pixels"], inputs["ratio"]
        units = pixels.shape[0]
        labels = self._labels(inputs["count"], self.computed(units))
        x_NPD = self._embed(work, pixels, ratio)
        x, kept = self.tower.run(work, self._joined(x_NPD), labels, keep=self.keep)
        x = work.norm("vision.post_norm", x, EPS)
        x = self._tiles(x)
        x = x + self._tile_positions(work, "vision.post_tile", ratio, x.shape[0])
        x, _ = self.whole.run(work, self._joined(x), labels)
        states = jnp.stack(kept, axis=-1).reshape(*x.shape[:2], -1)
        x = self._tiles(jnp.concatenate([x, states], axis=-1))[:units, : self.patches]
        with jax.named_scope("project"):
            return work.linear("vision.project1", x, self.width, bias=True)

    def _labels(self, count: Array, computed: int) -> Array:
        """Labels of `see_copies` [1, 1, computed * padded]: a picture's tiles, then padding.

        The first tile of padding stands for those that are not computed as well.
        """
        tile = jnp.arange(computed, dtype=jnp.int32)[:, None]
        patch = jnp.arange(self.padded, dtype=jnp.int32)[None]
        copies = 1 + jnp.where(tile == count, self.tiles - computed, 0)
        is_padding = (tile >= count) | (patch >= self.patches)
        return jnp.where(is_padding, copies, 0).reshape(1, 1, -1)

    def _embed(self, work: Work, pixels: Array, ratio: Array) -> Array:
        with jax.named_scope("patches"):
            hidden, tiles = self.tower.hidden, self.computed(pixels.shape[0])
            x = work.linear("vision.patch", pixels, hidden)
            # The linear has no bias: black padding stays zero.
            x = jnp.pad(x, ((0, tiles - x.shape[0]), (0, 0), (0, 0)))
            x = x + self._tile_positions(work, "vision.pre_tile", ratio, tiles)
            first = jnp.broadcast_to(work.plain("vision.class"), (tiles, 1, hidden))
            x = jnp.concatenate([first, x], axis=1)
            gate = jnp.tanh(work.plain("vision.position_gate"))
            own = _row(work.weights["vision.tile_positions"], ratio)
            x = x + (1 - gate) * work.plain("vision.positions")[None]
            x = x + gate * own.reshape(self.tiles, self.patches, hidden)[:tiles]
            x = work.norm("vision.pre_norm", x, EPS)
            return jnp.pad(x, ((0, 0), (0, self.padded - self.patches), (0, 0)))

    def _tile_positions(self, work: Work, name: str, ratio: Array, tiles: int) -> Array:
        own = _row(work.weights[name], ratio).reshape(self.tiles, 1, self.tower.hidden)
        return own[:tiles] * jnp.tanh(work.plain(f"{name}_gate"))

    def _joined(self, x_NPD: Array) -> Array:
        return x_NPD.reshape(1, x_NPD.shape[0] * self.padded, -1)

    def _tiles(self, x: Array) -> Array:
        return x.reshape(-1, self.padded, x.shape[-1])


@dataclass(frozen=True)
class CrossKeys:
    """Of the layers that attend to tiles: how many, and one core's KV heads of each."""

    layers: int
    heads: int
    head_size: int
    eps: float


def encode_cross(
    encoder: MllamaEncoder,
    kernels: Kernels,
    cross: CrossKeys,
    sum_of: Callable[[Array], Array] | None = None,
) -> Any:
    """The program (weights, state, inputs) -> state that puts a picture's keys and values in place.

    Shapes: state cross_k, cross_v [layers, blocks, patches, K, E]; inputs["rows"] int32 [units], a
    block each, 0 for garbage. `sum_of`: as encode_features.
    """

    def program(weights: Any, state: dict[str, Array], inputs: dict[str, Array]) -> Any:
        work = Work(weights, kernels, sum_of)
        states = encoder.encode(work, inputs)
        heads, size = cross.heads, cross.head_size

        def body(carry: None, layer: Array) -> tuple[None, tuple[Array, Array]]:
            both = work.linear("vision.cross_kv", states, 2 * heads * size, layer[None])
            k, v = jnp.split(both.reshape(*states.shape[:2], 2 * heads, size), 2, axis=2)
            norm = work.plain("vision.cross_k_norm", layer[None])
            k = normalise(k.reshape(-1, size), norm, cross.eps).reshape(k.shape)
            return carry, (k, v)

        with jax.named_scope("keys"):
            _, found = lax.scan(body, None, jnp.arange(cross.layers, dtype=jnp.int32))
        return {
            name: state[name].at[:, inputs["rows"]].set(
                array.astype(state[name].dtype), mode="promise_in_bounds"
            )
            for name, array in zip(("cross_k", "cross_v"), found, strict=True)
        }  # fmt: skip

    return program


def _row(table: Array, index: Array) -> Array:
    row: Array = lax.dynamic_index_in_dim(table[0], index[0], 0, keepdims=False)
    return row
