"""What a family's encoder is to the build, and the function of its program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jax import Array

from ranvier.nn.kernels.table import Kernels
from ranvier.nn.vision.tower import Work

__all__ = ["Encoder", "Shape", "encode_features"]

Shape = tuple[tuple[int, ...], str]


class Encoder(Protocol):
    """A picture's arrays in, its features out; sizes follow from the bucket's `units` alone."""

    @property
    def width(self) -> int:
        """Numbers of one feature."""
        ...

    def inputs(self, units: int) -> dict[str, Shape]:
        """name -> (shape, dtype) of what a picture of the bucket gives; zeros are padding."""
        ...

    def outputs(self, units: int) -> int:
        """Features that the bucket yields, padding included."""
        ...

    def encode(self, work: Work, inputs: Mapping[str, Array]) -> Array:
        """Features f32 [outputs, width] of one picture."""
        ...


def encode_features(
    encoder: Encoder, kernels: Kernels, sum_of: Callable[[Array], Array] | None = None
) -> Any:
    """The program (weights, state, inputs) -> state that puts features into rows of a buffer.

    inputs["rows"] int32 [outputs] names the row of each feature; the buffer's last is garbage.
    `sum_of`: over cores, where several share the encoder; each has the whole buffer.
    """

    def program(weights: Any, state: dict[str, Array], inputs: dict[str, Array]) -> Any:
        buffer = state["features"]
        features = encoder.encode(Work(weights, kernels, sum_of), inputs)
        put = buffer.at[inputs["rows"]].set(features.astype(buffer.dtype),
                                            mode="promise_in_bounds")  # fmt: skip
        return {"features": put}

    return program
