"""The texts on their way through the layers of the original model and of the one being made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec
from ranvier.quantize.forward import Linear, run_layer

__all__ = ["Layer", "Streams"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """A layer and its weights: matrices by tensor name, of each array those that `names` lists."""

    spec: DecoderSpec
    index: int
    names: dict[str, tuple[str, ...]]
    vectors: dict[str, Floats]
    weights: dict[str, Floats]

    def run(self, x_STD: Floats, linear: Linear) -> Floats:
        return run_layer(x_STD, self.spec, self.index, self.vectors, linear)

    def matrix(self, array: str) -> Floats:
        return np.concatenate([self.weights[name] for name in self.names[array]])

    def product(self, array: str, x_STI: Floats) -> Floats:
        return x_STI @ self.matrix(array).T


class Streams:
    """Hidden states [S, T, D] between two layers: of the calibration and of the evaluation text.

    Both in the original model and in the one that is being made. None: there is no such text.
    """

    def __init__(
        self, embed: Callable[[Ids], Floats], calibration: Ids | None, evaluation: Ids | None
    ) -> None:
        def start(ids: Ids | None) -> Floats | None:
            return None if ids is None else embed(ids)

        self._calibration = self._original_calibration = start(calibration)
        self.made = self.original = start(evaluation)

    @property
    def is_calibrated(self) -> bool:
        return self._calibration is not None

    def originals(self, layer: Layer) -> dict[str, Floats]:
        """Inputs [T, I] of the original layer's linears on the calibration text, which advances."""
        found: dict[str, Floats] = {}

        def linear(array: str, x: Floats) -> Floats:
            found[array] = x.reshape(-1, x.shape[-1])
            return layer.product(array, x)

        if self._original_calibration is not None:
            self._original_calibration = layer.run(self._original_calibration, linear)
        return found

    def peaks(self, layer: Layer) -> dict[str, Floats]:
        """The largest magnitude of each input of the layer's linears after the made layers."""
        found: dict[str, Floats] = {}

        def linear(array: str, x: Floats) -> Floats:
            found[array] = np.abs(x.reshape(-1, x.shape[-1])).max(0)
            return layer.product(array, x)

        assert self._calibration is not None
        layer.run(self._calibration, linear)
        return found

    def calibrate(self, layer: Layer, linear: Linear) -> None:
        """Carry the calibration text through the layer that `linear` makes as it goes."""
        assert self._calibration is not None
        self._calibration = layer.run(self._calibration, linear)

    def evaluate(self, original: Layer, made: Layer, linear: Linear) -> None:
        """Carry the evaluation text through both; `linear`: the made one's products."""
        if self.original is None or self.made is None:
            return
        self.original = original.run(self.original, original.product)
        self.made = made.run(self.made, linear)
