"""Move outliers from activations into weights, where 8-bit activations would lose them.

The model stays the same function: an input channel divided by s before a linear has its column
multiplied by s. The division goes into the norm before the linear, and for `down` into the rows of
`up`. Source: Xiao et al., SmoothQuant (arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec

__all__ = ["changed_norms", "smooth"]

Floats = NDArray[np.float32]

STRENGTH = 0.6
"""Share of a channel's range that moves: 0 none, 1 all."""
NORMS = {"qkv": "attn_norm", "gate_up": "mlp_norm"}
FLOOR = np.float32(1e-5)


def smooth(
    names: Mapping[str, tuple[str, ...]],
    dense: dict[str, Floats],
    vectors: dict[str, Floats],
    peaks: Mapping[str, Floats],
) -> dict[str, Floats]:
    """Smooth one layer's matrices and norms in place; what the inputs of an array are divided by.

    `peaks` |x| [I]: of the inputs of each array on the calibration text.
    """
    found = {}
    for array, norm in NORMS.items():
        by = found[array] = _factors([dense[name] for name in names[array]], peaks[array])
        for name in names[array]:
            dense[name] = dense[name] * by
        vectors[norm] = vectors[norm] / by
    (down,), up = names["down"], names["gate_up"][1]
    by = found["down"] = _factors([dense[down]], peaks["down"])
    dense[down] = dense[down] * by
    dense[up] = dense[up] / by[:, None]
    return found


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
