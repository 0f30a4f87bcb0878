"""Quantise a model layer by layer: calibrate, round, and carry both models' texts through.

Each linear is made on what the quantised ones before it give, and moved to what the original gives,
so that it makes good what they lost. Holds one layer's weights and its linears' inputs at a time
beside the texts' hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec
from ranvier.quantize.forward import LINEARS, Linear, embed, head, layer_vectors
from ranvier.quantize.measure import Divergence, compare
from ranvier.quantize.smoothing import changed_norms, smooth
from ranvier.quantize.streams import Layer, Streams
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantise.compensation import Compensation
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import Scheme
from ranvier.weights.quantise.selection import module_of
from ranvier.weights.quantised import QuantTensor

__all__ = ["Making", "moments_of"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

LOUD = 4
"""A token counts as if its energy were at most so many times the median's: the few that take all of
a model's massive activations (the first of a text, mostly) would drown the rest."""


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
        streams = Streams(
            lambda ids: embed(self.checkpoint, self.spec, ids), self.calibration, self.evaluation
        )
        for index in range(self.spec.layers):
            original = self._original(index)
            inputs = streams.originals(original)
            layer = original
            if inputs and all(map(self._is_dynamic, original.weights)):
                layer, factors = _smoothed(original, streams.peaks(original))
                inputs = {array: x / factors.get(array, 1) for array, x in inputs.items()}
                yield from changed_norms(self.spec, index, layer.vectors).items()
            made = self._made(layer, inputs, streams)
            values = {name: tensor.values() for name, tensor in made.items()}
            rounded = replace(layer, weights={**layer.weights, **values})
            streams.evaluate(original, rounded, self._linear(rounded))
            yield from made.items()
            self.progress(1)
        if streams.original is not None and streams.made is not None:
            assert self.evaluation is not None
            last = head(self.checkpoint, self.spec)
            self.divergence = compare(self.evaluation, streams.original, streams.made, last)

    def _original(self, index: int) -> Layer:
        names = {array: self.spec.array(array).sources[index] for array in LINEARS}
        weights = {
            name: np.asarray(self.checkpoint.read(name), np.float32)
            for sources in names.values()
            for name in sources
        }
        vectors = layer_vectors(self.checkpoint, self.spec, index)
        return Layer(self.spec, index, names, vectors, weights)

    def _made(
        self, layer: Layer, originals: dict[str, Floats], streams: Streams
    ) -> dict[str, QuantTensor]:
        """The layer's linears in their order, each on what those before it give when quantised."""
        made: dict[str, QuantTensor] = {}
        if not streams.is_calibrated:
            chosen = [name for name in layer.weights if name in self.schemes]
            return {name: self._quantise(name, layer.weights[name], None) for name in chosen}
        weights = dict(layer.weights)
        rounded = replace(layer, weights=weights)

        def linear(array: str, x: Floats) -> Floats:
            chosen = [name for name in layer.names[array] if name in self.schemes]
            if chosen:
                flat = x.reshape(-1, x.shape[-1])
                moments = moments_of(flat, originals[array])
                compensation = Compensation(module_of(chosen[0]), *moments)
            for name in chosen:
                made[name] = self._quantise(name, layer.weights[name], compensation)
                weights[name] = made[name].values()
            return self._linear(rounded)(array, x)

        streams.calibrate(rounded, linear)
        return made

    def _linear(self, layer: Layer) -> Linear:
        """The layer's products as they are computed when it is served."""

        def linear(array: str, x: Floats) -> Floats:
            is_dynamic = any(map(self._is_dynamic, layer.names[array]))
            return layer.product(array, _by_token(x) if is_dynamic else x)

        return linear

    def _is_dynamic(self, name: str) -> bool:
        scheme = self.schemes.get(name)
        return scheme is not None and scheme.activation_bits == 8

    def _quantise(
        self, name: str, matrix: Floats, compensation: Compensation | None
    ) -> QuantTensor:
        scheme, module = self.schemes[name], module_of(name)
        if compensation is None:
            made = quantise(matrix, scheme, module)
        else:
            made = compensation.quantise(matrix, scheme, module)
        lost = np.square(made.values() - matrix).sum(dtype=np.float64)
        self.errors[module] = float(lost / max(np.square(matrix).sum(dtype=np.float64), 1e-30))
        return made


def moments_of(x_TI: Floats, original_TI: Floats) -> tuple[Floats, Floats]:
    """E[x x'] and E[(o - x) x'], both [I, I], of a linear's inputs and those in the original."""
    energy = np.mean(np.square(x_TI), 1)
    share = np.minimum(1, LOUD * np.median(energy) / np.maximum(energy, np.float32(1e-30)))
    even = x_TI * (share / np.float32(len(x_TI)))[:, None]
    return x_TI.T @ even, (original_TI - x_TI).T @ even


def _smoothed(layer: Layer, peaks: dict[str, Floats]) -> tuple[Layer, dict[str, Floats]]:
    """The layer as it is smoothed, and what the inputs of its arrays are divided by."""
    weights, vectors = dict(layer.weights), dict(layer.vectors)
    factors = smooth(layer.names, weights, vectors, peaks)
    return replace(layer, weights=weights, vectors=vectors), factors


def _by_token(x: Floats) -> Floats:
    """Activations as a kernel sees them that quantises each token to 8 bits."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(x / scale) * scale
