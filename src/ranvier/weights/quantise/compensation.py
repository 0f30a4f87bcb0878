"""Round a matrix with error compensation: what one input loses, the inputs after it make good.

Source: Frantar et al., GPTQ (arXiv 2210.17323), with inputs in the order of their activations'
energy and the groups' scales fixed beforehand, so that their order in the file stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantised import QuantTensor

__all__ = ["quantise_aware"]

Floats = NDArray[np.float32]

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""
BLOCK = 64
"""Inputs whose errors are gathered before the rest of the matrix is corrected."""


def quantise_aware(matrix: Floats, scheme: Scheme, name: str, hessian: Floats) -> QuantTensor:
    """The matrix [O, I] in an integer scheme, given E[x x'] [I, I] of its inputs.

    Raises CheckpointError, as `quantise` does.
    """
    diagonal = np.diag(hessian).copy()
    if not np.isfinite(diagonal).all() or not diagonal.any():
        raise CheckpointError(f"{name}: its activations on the calibration text are not finite.")
    diagonal += diagonal.mean() * DAMPING
    rounded = quantise(matrix, scheme, name, diagonal)
    assert rounded.scales is not None and rounded.kind == "int"
    order = np.argsort(-diagonal, kind="stable")
    damped = hessian.astype(np.float64)
    damped[np.diag_indices(len(damped))] = diagonal
    upper = _inverse_factor(damped[np.ix_(order, order)])
    zeros: Floats = (
        np.full_like(rounded.scales, rounded.zero)
        if rounded.zeros is None
        else rounded.zeros.astype(np.float32)
    )
    group = order // rounded.group
    codes = _compensate(
        matrix[:, order],
        upper,
        rounded.scales[:, group],
        zeros[:, group],
        (0, 15) if rounded.bits == 4 else (-127, 127),
    )
    back = np.empty_like(rounded.codes)
    back[:, order] = codes.astype(rounded.codes.dtype)
    return replace(rounded, codes=back)


def _compensate(
    matrix: Floats, upper: Floats, scales: Floats, zeros: Floats, limits: tuple[int, int]
) -> Floats:
    """Codes of the inputs one after the other; `scales` and `zeros` as wide as the matrix."""
    # Inputs come first in memory: each step reads and writes whole rows.
    left = np.array(matrix.T, order="C")
    scales, zeros = np.array(scales.T, order="C"), np.array(zeros.T, order="C")
    codes = np.empty_like(left)
    inputs = len(left)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for i in range(start, end):
            code = np.clip(np.rint(left[i] / scales[i]) + zeros[i], *limits)
            codes[i] = code
            error = (left[i] - (code - zeros[i]) * scales[i]) / upper[i, i]
            left[i + 1 : end] -= upper[i, i + 1 : end, None] * error
            errors[i - start] = error
        left[end:] -= upper[start:end, end:].T @ errors
    return codes.T


def _inverse_factor(hessian: NDArray[np.float64]) -> Floats:
    """The upper Cholesky factor of the inverse."""
    inverse = np.linalg.inv(hessian)
    inverse = (inverse + inverse.T) / 2
    return np.linalg.cholesky(inverse).T.astype(np.float32)
