"""The encode programs of an artifact: a picture in, its features into the device's buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ranvier.core.buckets import smallest
from ranvier.core.errors import DeviceError
from ranvier.core.media import ImageItem, VisionInfo
from ranvier.core.program import ProgramShape, encoder_shapes
from ranvier.runtime.compat import LoadedProgram
from ranvier.runtime.mesh import RankMesh
from ranvier.runtime.pictures import Arrays, arrange, padded, units_of

__all__ = ["PREFIX", "PictureEncoder"]

PREFIX = "vision."
"""Names of the weights that encode programs take, and no step does."""


class PictureEncoder:
    """Encodes one picture at a time in the smallest bucket that holds it.

    `numbers` is the manifest's model["encoder"]: preparation, and for each bucket its arrays and
    how many rows it puts out. Of several ranks each encodes, with its part of the weights.
    """

    def __init__(
        self,
        vision: VisionInfo,
        numbers: Mapping[str, Any],
        programs: Mapping[ProgramShape, LoadedProgram],
        weights: list[jax.Array],
        mesh: RankMesh,
    ) -> None:
        self.vision = vision
        self.state_names: list[str] = sorted(numbers["state"])
        self._preparation = numbers["preparation"]
        self._buckets = numbers["buckets"]
        self._shapes = {shape.tokens: shape for shape in encoder_shapes(vision)}
        self._programs = programs
        self._weights = weights
        self._mesh = mesh

    def run(self, image: ImageItem, rows: list[int], state: list[jax.Array]) -> list[jax.Array]:
        """The state with the picture's features in `rows`. Raises DeviceError; donates `state`."""
        vision = self.vision
        try:
            units = smallest(vision.units, units_of(image, vision.unit))
        except LookupError as error:
            raise DeviceError(
                f"A picture of {units_of(image, vision.unit)} {vision.unit} came; the largest "
                f"encode program takes {vision.units[-1]}."
            ) from error
        return self._launch(units, arrange(image, self._preparation), rows, state)

    def warm(self, state: list[jax.Array]) -> list[jax.Array]:
        """Run every program once on nothing."""
        for units in self.vision.units:
            state = self._launch(units, {}, [], state)
        return state

    def _launch(
        self, units: int, arrays: Arrays, rows: list[int], state: list[jax.Array]
    ) -> list[jax.Array]:
        bucket = self._buckets[str(units)]
        inputs = padded(arrays, bucket["inputs"])
        # What has no row goes to a garbage one: block 0 of a cross cache, the buffer's last row.
        inputs["rows"] = np.full(bucket["outputs"], 0 if self.vision.is_cross else self.vision.rows,
                                 np.int32)  # fmt: skip
        inputs["rows"][: len(rows)] = rows
        flat = [self._mesh.same(inputs[name]) for name in sorted(inputs)]
        program = self._programs[self._shapes[units]]
        return self._mesh.run_own(program, [*self._weights, *state, *flat])
