"""Move outliers from activations into weights, where 8-bit activations would lose them.

The model stays the same function: an input channel divided by s before a linear has its column
multiplied by s. The division goes into the norm before the linear, and for `down` into the rows of
`up`. Source: Xiao et al., SmoothQuant (arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec

__all__ = ["Inputs", "changed_norms", "inputs_of", "smooth"]

Floats = NDArray[np.float32]

STRENGTH = 0.6
"""Share of a channel's range that moves: 0 none, 1 all."""
NORMS = {"qkv": "attn_norm", "gate_up": "mlp_norm"}
FLOOR = np.float32(1e-5)
LOUD = 4
"""A token counts as if its energy were at most so many times the median's: the few that take all of
a model's massive activations (the first of a text, mostly) would drown the rest."""


@dataclass(frozen=True)
class Inputs:
    """Of the inputs of a linear on the calibration text: E[x x'] [I, I] and peaks |x| [I]."""

    energy: Floats
    peaks: Floats

    def divided(self, by: Floats) -> Inputs:
        return Inputs(self.energy / by / by[:, None], self.peaks / by)


def inputs_of(x_TI: Floats) -> Inputs:
    """What calibration keeps of a linear's inputs."""
    energy = np.mean(np.square(x_TI), 1)
    share = np.minimum(1, LOUD * np.median(energy) / np.maximum(energy, np.float32(1e-30)))
    even = x_TI * np.sqrt(share, dtype=np.float32)[:, None]
    return Inputs(even.T @ even / np.float32(len(even)), np.abs(x_TI).max(0))


def smooth(
    names: Mapping[str, tuple[str, ...]],
    dense: dict[str, Floats],
    vectors: dict[str, Floats],
    inputs: dict[str, Inputs],
) -> None:
    """Smooth one layer in place: its matrices, its norms, and what is known of its inputs."""
    for array, norm in NORMS.items():
        by = _factors([dense[name] for name in names[array]], inputs[array].peaks)
        for name in names[array]:
            dense[name] = dense[name] * by
        vectors[norm] = vectors[norm] / by
        inputs[array] = inputs[array].divided(by)
    (down,), up = names["down"], names["gate_up"][1]
    by = _factors([dense[down]], inputs["down"].peaks)
    dense[down] = dense[down] * by
    dense[up] = dense[up] / by[:, None]
    inputs["down"] = inputs["down"].divided(by)


def changed_norms(
    spec: DecoderSpec, layer: int, vectors: Mapping[str, Floats]
) -> dict[str, Floats]:
    """The norms that `smooth` changes, by their tensors' names and as a checkpoint holds them."""
    found = {}
    for norm in NORMS.values():
        array = spec.array(norm)
        found[array.sources[layer][0]] = vectors[norm] - np.float32(array.offset)
    return found


def _factors(matrices: list[Floats], peaks: Floats) -> Floats:
    """What each input is divided by; their geometric mean is 1."""
    widest = np.maximum.reduce([np.abs(matrix).max(0) for matrix in matrices])
    found = np.maximum(peaks, FLOOR) ** STRENGTH / np.maximum(widest, FLOOR) ** (1 - STRENGTH)
    return np.asarray(found / np.exp(np.log(found).mean()), np.float32)
