"""Round a matrix with error compensation: what one input loses, the inputs after it make good.

Sources: Frantar et al., GPTQ (arXiv 2210.17323), with inputs in the order of their activations'
energy and the groups' scales fixed beforehand, so that their order in the file stays as it is; Li
et al., GPTAQ (arXiv 2504.02692): the wanted product is that of the original model's inputs, here by
moving the matrix before it is rounded; for 4 bits then coordinate descent over codes and scales.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantised import QuantTensor

__all__ = ["Compensation"]

Floats = NDArray[np.float32]

DAMPING = 0.01
"""Added to the energy's diagonal, as a share of its mean."""
BLOCK = 64
"""Inputs whose errors are gathered before the rest of the matrix is corrected."""
ROWS = 256
"""Outputs whose scales are solved for at a time."""
SCALE_KEPT = 1e-3
"""How much a scale is drawn to what it was, as a share of its mean weight in the error."""


class Compensation:
    """The inputs x of a linear on a text, made ready for the matrices that read them.

    `energy` is E[x x'] [I, I]; `lag`, E[(o - x) x'] [I, I] with o the same inputs in the original
    model: matrices first move to give on x what they gave on o, as far as a linear can. Raises
    CheckpointError naming the linear for an energy that is not finite, or nothing.
    """

    def __init__(self, name: str, energy: Floats, lag: Floats | None = None) -> None:
        diagonal = np.diag(energy).copy()
        if not np.isfinite(diagonal).all() or not diagonal.any():
            raise CheckpointError(
                f"{name}: its activations on the calibration text are not finite."
            )
        self._diagonal = diagonal + diagonal.mean() * np.float32(DAMPING)
        self._energy = energy.copy()
        np.fill_diagonal(self._energy, self._diagonal)
        self._order = np.argsort(-self._diagonal, kind="stable")
        inverse = np.linalg.inv(self._energy.astype(np.float64))
        inverse = (inverse + inverse.T) / 2
        factor = np.linalg.cholesky(inverse[np.ix_(self._order, self._order)])
        self._upper: Floats = factor.T.astype(np.float32)
        self._move = None if lag is None else (lag @ inverse).astype(np.float32)

    def quantise(self, matrix: Floats, scheme: Scheme, name: str) -> QuantTensor:
        """The matrix [O, I] in an integer scheme. Raises CheckpointError, as `quantise` does.

        Cost: O * I * I multiplications, several times.
        """
        wanted = matrix if self._move is None else matrix + matrix @ self._move
        rounded = quantise(wanted, scheme, name, self._diagonal)
        assert rounded.scales is not None and rounded.kind == "int"
        zeros: Floats = (
            np.full_like(rounded.scales, rounded.zero)
            if rounded.zeros is None
            else rounded.zeros.astype(np.float32)
        )
        limits = (0, 15) if rounded.bits == 4 else (-127, 127)
        group, scales = np.arange(matrix.shape[1]) // rounded.group, rounded.scales
        steps = self._compensate(wanted, scales[:, group], zeros[:, group], limits)
        if rounded.bits == 4:
            steps = self._descend(wanted, steps, scales[:, group], zeros[:, group], limits)
            scales = self._rescale(wanted, steps, scales)
        codes = (steps + zeros[:, group]).astype(rounded.codes.dtype)
        return replace(rounded, codes=codes, scales=scales)

    def _compensate(
        self, wanted: Floats, scales: Floats, zeros: Floats, limits: tuple[int, int]
    ) -> Floats:
        """Codes less zeros [O, I], one input after the other; `scales`, `zeros` as wide."""
        # Inputs come first in memory: each step reads and writes whole rows.
        left = wanted.T[self._order]
        scales, zeros = scales.T[self._order], zeros.T[self._order]
        upper, steps = self._upper, np.empty_like(left)
        for start in range(0, len(left), BLOCK):
            end = min(start + BLOCK, len(left))
            errors = np.empty((end - start, left.shape[1]), np.float32)
            for i in range(start, end):
                steps[i] = _nearest(left[i], scales[i], zeros[i], limits)
                error = (left[i] - steps[i] * scales[i]) / upper[i, i]
                left[i + 1 : end] -= upper[i, i + 1 : end, None] * error
                errors[i - start] = error
            left[end:] -= upper[start:end, end:].T @ errors
        return _in_place(steps, self._order).T

    def _descend(
        self, wanted: Floats, steps: Floats, scales: Floats, zeros: Floats, limits: tuple[int, int]
    ) -> Floats:
        """Each code at its best beside all others, once: also beside those that came after it."""
        order, energy = self._order, self._energy[np.ix_(self._order, self._order)]
        steps, scales, zeros = (a.T[order] for a in (steps, scales, zeros))
        values = steps * scales
        pull = energy @ (wanted.T[order] - values)
        for start in range(0, len(order), BLOCK):
            end = min(start + BLOCK, len(order))
            before = values[start:end].copy()
            for i in range(start, end):
                best = values[i] + pull[i] / energy[i, i]
                steps[i] = _nearest(best, scales[i], zeros[i], limits)
                moved = steps[i] * scales[i] - values[i]
                values[i] += moved
                pull[start:end] -= energy[start:end, i, None] * moved
            pull[end:] -= energy[end:, start:end] @ (values[start:end] - before)
        return _in_place(steps, order).T

    def _rescale(self, wanted: Floats, steps: Floats, scales: Floats) -> Floats:
        """The scales [O, G] of least error beside the codes, as bfloat16 numbers."""
        groups = scales.shape[1]
        found = np.empty_like(scales)
        for start in range(0, len(wanted), ROWS):
            rows = slice(start, start + ROWS)
            part = steps[rows].reshape(-1, groups, steps.shape[1] // groups)
            linear = ((wanted[rows] @ self._energy).reshape(part.shape) * part).sum(-1)
            square = np.empty((len(part), groups, groups), np.float32)
            for g, energy in enumerate(np.split(self._energy, groups)):
                square[:, g] = ((part[:, g] @ energy).reshape(part.shape) * part).sum(-1)
            diagonal = np.einsum("ogg->og", square)
            kept = SCALE_KEPT * diagonal.mean(-1, keepdims=True) + np.float32(1e-30)
            diagonal += kept
            linear += kept * scales[rows]
            found[rows] = np.linalg.solve(square, linear[..., None])[..., 0]
        # Codes of a scale that vanished or changed its sign say next to nothing of the matrix.
        found = np.where(found > scales / 4, found, scales)
        return found.astype(ml_dtypes.bfloat16).astype(np.float32)


def _nearest(values: Floats, scale: Floats, zero: Floats, limits: tuple[int, int]) -> Floats:
    """Codes less zeros."""
    return np.asarray(np.clip(np.rint(values / scale) + zero, *limits) - zero, np.float32)


def _in_place(rows: Floats, order: NDArray[np.int64]) -> Floats:
    """Rows that were taken in an order, where they came from."""
    found = np.empty_like(rows)
    found[order] = rows
    return found
