"""Encoders of one picture of any size as a run of patches: Qwen2-VL to Qwen3-VL, and Pixtral.

Positions, windows and padding are data of the patches; patches that become one feature lie
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ranvier.nn.vision.encoder import Shape
from ranvier.nn.vision.tower import Activation, Tower, Work, activate

__all__ = ["PatchEncoder"]


@dataclass(frozen=True)
class PatchEncoder:
    """A tower under a rope of two axes; `merge` x `merge` patches become one feature.

    `labels` is how many kinds of attention there are (2: windows beside the whole). `has_table`:
    learned positions are mixed of four entries of a table. `deep` are layers whose states are
    features too, which go to the first layers of the text side.
    """

    tower: Tower
    output: int
    values: int
    merge: int
    head_activation: Activation
    labels: int = 1
    has_patch_bias: bool = False
    has_pre_norm: bool = False
    has_head_norm: bool = True
    has_head_bias: bool = True
    head_eps: float = 1e-6
    has_table: bool = False
    deep: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return self.output * (1 + len(self.deep))

    def inputs(self, units: int) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "pixels": ((units, self.values), "float32"),
            "positions": ((units, 2), "int32"),
            "labels": ((self.labels, 1, units), "int32"),
        }
        if self.has_table:
            shapes |= {"taps": ((units, 4), "int32"), "tap_weights": ((units, 4), "float32")}
        return shapes

    def outputs(self, units: int) -> int:
        return units // self.merge**2

    def encode(self, work: Work, inputs: Mapping[str, Array]) -> Array:
        x_PD = self._embed(work, inputs)
        with jax.named_scope("rope"):
            turn = _turn(inputs["positions"], work.weights["vision.inv_freq"])
        x, kept = self.tower.run(work, x_PD[None], inputs["labels"], turn, self.deep)
        with jax.named_scope("project"):
            parts = [self._head(work, "vision.project", x[0], is_late=False)]
            for i, state in enumerate(kept):
                parts.append(self._head(work, f"vision.deep{i}", state[0], is_late=True))
            return jnp.concatenate(parts, axis=1) if kept else parts[0]

    def _embed(self, work: Work, inputs: Mapping[str, Array]) -> Array:
        with jax.named_scope("patches"):
            hidden = self.tower.hidden
            x = work.linear("vision.patch", inputs["pixels"], hidden, bias=self.has_patch_bias)
            if self.has_table:
                table = work.plain("vision.positions")
                found = table.at[inputs["taps"]].get(mode="promise_in_bounds")
                x = x + jnp.sum(found * inputs["tap_weights"][:, :, None], axis=1)
            return work.norm("vision.pre_norm", x, self.tower.eps) if self.has_pre_norm else x

    def _head(self, work: Work, name: str, x_PD: Array, *, is_late: bool) -> Array:
        """Two linears over merged patches; the norm goes before the merge, or behind it."""
        size = self.tower.hidden * self.merge**2
        if self.has_head_norm and not is_late:
            x_PD = work.norm(f"{name}_norm", x_PD, self.head_eps)
        x = x_PD.reshape(-1, size)
        if is_late:
            x = work.norm(f"{name}_norm", x, self.head_eps)
        inner = size if self.merge > 1 else self.output
        x = work.linear(f"{name}1", x, inner, bias=self.has_head_bias)
        x = activate(x, self.head_activation)
        return work.linear(f"{name}2", x, self.output, bias=self.has_head_bias)


def _turn(positions_P2: Array, inv_freq: Array) -> Array:
    """Cosines and sines [2, P, E/2] of a row and a column; inv_freq [2, E/2] of each."""
    places = positions_P2.astype(jnp.float32)
    angles = places[:, :1] * inv_freq[0][None] + places[:, 1:] * inv_freq[1][None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])
