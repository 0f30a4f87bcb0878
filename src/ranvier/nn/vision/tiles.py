"""Encoders of square tiles by CLIP's or SigLIP's tower: Llava, Llava-Next, Idefics3, Gemma 3.

A tile has a fixed number of patches with learned positions. What becomes of a tile's hidden
states is the family's `head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ranvier.nn.vision.encoder import Shape
from ranvier.nn.vision.tower import Activation, Tower, Work, activate

__all__ = ["Head", "MlpHead", "PoolHead", "ShuffleHead", "TileEncoder"]


class Head(Protocol):
    """From a tile's hidden states [N, P, D] to its features [N, F, width]."""

    @property
    def width(self) -> int: ...
    def outputs(self, patches: int) -> int: ...
    def run(self, work: Work, x_NPD: Array) -> Array: ...


@dataclass(frozen=True)
class MlpHead:
    """Llava's projector: two linears around an activation, a feature a patch."""

    width: int
    activation: Activation
    has_bias: bool

    def outputs(self, patches: int) -> int:
        return patches

    def run(self, work: Work, x_NPD: Array) -> Array:
        bias = self.has_bias
        inner = work.linear("vision.project1", x_NPD, self.width, bias=bias)
        return work.linear(
            "vision.project2", activate(inner, self.activation), self.width, bias=bias
        )


@dataclass(frozen=True)
class ShuffleHead:
    """Idefics3's connector: `factor` x `factor` patches become one feature by a linear."""

    width: int
    factor: int

    def outputs(self, patches: int) -> int:
        return patches // self.factor**2

    def run(self, work: Work, x_NPD: Array) -> Array:
        count, patches, hidden = x_NPD.shape
        side, by = round(patches**0.5), self.factor
        x = x_NPD.reshape(count, side // by, by, side // by, by, hidden).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(count, patches // by**2, by * by * hidden)
        return work.linear("vision.project1", x, self.width)


@dataclass(frozen=True)
class PoolHead:
    """Gemma 3's projector: the mean of `factor` x `factor` patches, an RMS norm, a linear."""

    width: int
    factor: int
    eps: float

    def outputs(self, patches: int) -> int:
        return patches // self.factor**2

    def run(self, work: Work, x_NPD: Array) -> Array:
        count, patches, hidden = x_NPD.shape
        side, by = round(patches**0.5), self.factor
        x = x_NPD.reshape(count, side // by, by, side // by, by, hidden).mean(axis=(2, 4))
        x = work.norm("vision.project_norm", x.reshape(count, -1, hidden), self.eps)
        return work.linear("vision.project1", x, self.width)


@dataclass(frozen=True)
class TileEncoder:
    """CLIP's or SigLIP's tower with a head. `keep` are the layers whose states feed the head.

    `has_class`: a learned class token goes first, and is dropped again before the head.
    `has_order`: inputs["order"] says which of all features fills each place, -1 a newline's.
    """

    tower: Tower
    head: Head
    patches: int
    values: int
    keep: tuple[int, ...]
    has_class: bool = False
    has_patch_bias: bool = True
    has_pre_norm: bool = False
    has_post_norm: bool = False
    has_order: bool = False

    @property
    def width(self) -> int:
        return self.head.width

    def inputs(self, units: int) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"pixels": ((units, self.patches, self.values), "float32")}
        if self.has_order:
            shapes["order"] = ((self.outputs(units),), "int32")
        return shapes

    def outputs(self, units: int) -> int:
        """A feature a patch; with an order, a newline for each of their rows at most."""
        features = units * self.head.outputs(self.patches)
        return features + units * round(self.patches**0.5) if self.has_order else features

    def encode(self, work: Work, inputs: Mapping[str, Array]) -> Array:
        x_NPD = self._embed(work, inputs["pixels"])
        _, kept = self.tower.run(work, x_NPD, keep=self.keep)
        if self.has_class:
            kept = [x[:, 1:] for x in kept]
        x = jnp.concatenate(kept, axis=-1) if len(kept) > 1 else kept[0]
        with jax.named_scope("project"):
            if self.has_post_norm:
                x = work.norm("vision.post_norm", x, self.tower.eps)
            features = self.head.run(work, x).reshape(-1, self.width)
        if not self.has_order:
            return features
        order = inputs["order"]
        picked: Array = features.at[jnp.maximum(order, 0)].get(mode="promise_in_bounds")
        return jnp.where((order >= 0)[:, None], picked, work.weights["vision.newline"])

    def _embed(self, work: Work, pixels: Array) -> Array:
        with jax.named_scope("patches"):
            hidden = self.tower.hidden
            x = work.linear("vision.patch", pixels, hidden, bias=self.has_patch_bias)
            if self.has_class:
                first = jnp.broadcast_to(work.plain("vision.class"), (x.shape[0], 1, hidden))
                x = jnp.concatenate([first, x], axis=1)
            x = x + work.plain("vision.positions")[None]
            return work.norm("vision.pre_norm", x, self.tower.eps) if self.has_pre_norm else x
