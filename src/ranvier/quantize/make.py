"""Quantise a model layer by layer: calibrate, round, and carry both models' texts through.

At each layer the quantised weights already run below it, so that a layer makes good what those
before it lost. Holds one layer's weights at a time beside the texts' hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec
from ranvier.quantize.forward import LINEARS, embed, head, layer_vectors, run_layer
from ranvier.quantize.measure import Divergence, compare
from ranvier.quantize.smoothing import Inputs, changed_norms, inputs_of, smooth
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantise.compensation import quantise_aware
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantise.selection import module_of
from ranvier.weights.quantised import QuantTensor

__all__ = ["Making"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass
class Making:
    """One run: iterate `tensors()` to its end, then read `errors` and `divergence`.

    `schemes`: of each tensor that is quantised. `calibration`, `evaluation`: ids [S, T] or None.
    """

    checkpoint: Checkpoint
    spec: DecoderSpec
    schemes: dict[str, Scheme]
    calibration: Ids | None = None
    evaluation: Ids | None = None
    progress: Callable[[int], object] = lambda count: None
    errors: dict[str, float] = field(default_factory=dict)
    """Relative squared error of each quantised module's weights."""
    divergence: Divergence | None = None

    def tensors(self) -> Iterator[tuple[str, QuantTensor | Floats]]:
        """Every quantised tensor by its dense name, and norms that changed. Raises CheckpointError.

        8-bit activations are smoothed where there is a calibration text and no linear is left out.
        """
        texts = _Texts(self)
        for layer in range(self.spec.layers):
            names = {a: self.spec.array(a).sources[layer] for a in LINEARS}
            dense = {
                name: np.asarray(self.checkpoint.read(name), np.float32)
                for sources in names.values()
                for name in sources
            }
            vectors = layer_vectors(self.checkpoint, self.spec, layer)
            before = _Step(self.spec, layer, names, vectors, dict(dense))
            inputs = texts.inputs(before)
            if inputs and all(self._is_dynamic(name) for name in dense):
                vectors = dict(vectors)
                smooth(names, dense, vectors, inputs)
                yield from changed_norms(self.spec, layer, vectors).items()
            made = {
                name: self._quantise(name, dense[name], inputs.get(array))
                for array, sources in names.items()
                for name in sources
                if name in self.schemes
            }
            kept = {name: made[name].values() if name in made else dense[name] for name in dense}
            texts.advance(before, _Step(self.spec, layer, names, vectors, kept))
            yield from made.items()
            self.progress(1)
        self.divergence = texts.divergence()

    def _is_dynamic(self, name: str) -> bool:
        scheme = self.schemes.get(name)
        return scheme is not None and scheme.activation_bits == 8

    def _quantise(self, name: str, matrix: Floats, inputs: Inputs | None) -> QuantTensor:
        scheme, module = self.schemes[name], module_of(name)
        if inputs is None:
            made = quantise(matrix, scheme, module)
        else:
            made = quantise_aware(matrix, scheme, module, inputs.energy)
        lost = np.square(made.values() - matrix).sum(dtype=np.float64)
        self.errors[module] = float(lost / max(np.square(matrix).sum(dtype=np.float64), 1e-30))
        return made


@dataclass(frozen=True)
class _Step:
    """A layer and its weights."""

    spec: DecoderSpec
    layer: int
    names: dict[str, tuple[str, ...]]
    vectors: dict[str, Floats]
    weights: dict[str, Floats]

    def run(self, x_STD: Floats, linear: Callable[[str, Floats], Floats]) -> Floats:
        return run_layer(x_STD, self.spec, self.layer, self.vectors, linear)

    def matrices(self) -> dict[str, Floats]:
        return {a: np.concatenate([self.weights[n] for n in s]) for a, s in self.names.items()}


class _Texts:
    """The hidden states of the texts between two layers."""

    def __init__(self, making: Making) -> None:
        self._making = making

        def start(ids: Ids | None) -> Floats | None:
            return None if ids is None else embed(making.checkpoint, making.spec, ids)

        self._calibration = start(making.calibration)
        self._original = start(making.evaluation)
        self._quantised = self._original

    def inputs(self, step: _Step) -> dict[str, Inputs]:
        """What the linears of the layer see of the calibration text; nothing without one."""
        if self._calibration is None:
            return {}
        matrices, found = step.matrices(), {}

        def linear(array: str, x: Floats) -> Floats:
            flat = x.reshape(-1, x.shape[-1])
            found[array] = inputs_of(flat)
            return x @ matrices[array].T

        step.run(self._calibration, linear)
        return found

    def advance(self, before: _Step, after: _Step) -> None:
        """Carry every text through the layer, the original's as it was `before`."""
        if self._calibration is None and self._original is None:
            return
        matrices = after.matrices()
        is_dynamic = self._making._is_dynamic
        rounds = {array: any(map(is_dynamic, sources)) for array, sources in after.names.items()}

        def quantised(array: str, x: Floats) -> Floats:
            return (_by_token(x) if rounds[array] else x) @ matrices[array].T

        if self._calibration is not None:
            self._calibration = after.run(self._calibration, quantised)
        if self._original is not None and self._quantised is not None:
            self._quantised = after.run(self._quantised, quantised)
            plain = before.matrices()
            self._original = before.run(self._original, lambda array, x: x @ plain[array].T)

    def divergence(self) -> Divergence | None:
        making = self._making
        if self._original is None or self._quantised is None or making.evaluation is None:
            return None
        last = head(making.checkpoint, making.spec)
        return compare(making.evaluation, self._original, self._quantised, last)


def _by_token(x: Floats) -> Floats:
    """Activations as a kernel sees them that quantises each token to 8 bits."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(x / scale) * scale
