"""QuantTensor: a matrix as whole numbers and scales, whatever file or recipe it comes from.

The one form between readers and quantisers on one side and the packing for kernels on the other.
numpy only; knows nothing of files or of kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError

__all__ = ["SUPER", "QuantTensor", "SuperScales"]

SUPER = 256
"""Inputs that share the outer scale of a two-level format."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SuperScales:
    """Scales in two levels: scale = outer[o, i // 256] * codes[o, i // group].

    With minima: offset = -least_outer * least_codes. Shapes: outer, least_outer float16
    [O, I / 256]; codes int8 [O, I / group] (0 .. 63 where they are unsigned), least_codes uint8.
    """

    outer: NDArray[np.float16]
    codes: NDArray[np.int8]
    least_outer: NDArray[np.float16] | None = None
    least_codes: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class QuantTensor:
    """value[o, i] = scale[o, g] * (code[o, i] - zero[o, g]) + offset[o, g], g = i // group.

    Shapes: codes int8 [O, I] with 8 bits, else uint8 [O, I] below 2**bits; kind "fp8": codes are
    e4m3 bytes. `scales` f32 [O, I / group], or `levels` in their place. At most one of: `zero`
    (one for all), `zeros` (uint8 [O, I / group]), `offsets` (f32 [O, I / group]). group == I: one
    scale an output. `activation_bits` 8: activations are quantised to 8 bits, with one scale a
    token, or one for each `activation_group` of its inputs; 16: they are kept to what costs less
    than the codes do (CPU: 16 bits beside codes of 8, beside smaller ones 8 for 32 inputs).
    """

    codes: NDArray[Any]
    bits: Literal[4, 5, 6, 8]
    group: int
    kind: Literal["int", "fp8"] = "int"
    scales: Floats | None = None
    levels: SuperScales | None = None
    zero: int = 0
    zeros: NDArray[np.uint8] | None = None
    offsets: Floats | None = None
    activation_bits: Literal[8, 16] = 16
    activation_group: Literal[0, 64] = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def check(self, name: str) -> None:
        """Raise CheckpointError, naming the module, for what no kernel can take."""
        outputs, inputs = self.shape
        if inputs % self.group:
            raise CheckpointError(
                f"{name}: groups of {self.group} do not divide its {inputs} inputs."
            )
        wanted = (outputs, inputs // self.group)
        scales = self.scales if self.levels is None else self.levels.codes
        for field, array in (
            ("scales", scales), ("zero points", self.zeros), ("offsets", self.offsets),
        ):  # fmt: skip
            if array is not None and array.shape != wanted:
                raise CheckpointError(f"{name}: {field} have shape {array.shape}, not {wanted}.")
        outer = self.scales if self.levels is None else self.levels.outer
        least = self.offsets if self.levels is None else self.levels.least_outer
        for field, numbers in (("a scale", outer), ("an offset", least)):
            if numbers is not None and not np.isfinite(numbers).all():
                raise CheckpointError(f"{name}: {field} is not finite.")
        if self.kind == "fp8" and (np.bitwise_and(self.codes, 0x7F) == 0x7F).any():
            raise CheckpointError(f"{name}: a weight is not a number.")
        if (
            self.kind == "int"
            and self.bits < 8
            and int(self.codes.max(initial=0)) >= 1 << self.bits
        ):
            raise CheckpointError(f"{name}: a code does not fit into {self.bits} bits.")

    def take_rows(self, order: NDArray[np.int64]) -> QuantTensor:
        """The outputs `order`, in that order."""

        def rows(array: NDArray[Any] | None) -> Any:
            return None if array is None else array[order]

        levels = self.levels
        if levels is not None:
            levels = SuperScales(
                outer=rows(levels.outer),
                codes=rows(levels.codes),
                least_outer=rows(levels.least_outer),
                least_codes=rows(levels.least_codes),
            )
        return replace(
            self,
            codes=rows(self.codes),
            scales=rows(self.scales),
            zeros=rows(self.zeros),
            offsets=rows(self.offsets),
            levels=levels,
        )

    def values(self) -> Floats:
        """The matrix in f32 [O, I]: the reference of every kernel.

        Cost: I * O * 4 bytes several times.
        """
        outputs, inputs = self.shape
        scale, offset = self._scale_and_offset()
        if self.kind == "fp8":
            codes = self.codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        else:
            codes = self.codes.astype(np.float32)
        codes = codes.reshape(outputs, inputs // self.group, self.group)
        zero = np.float32(self.zero) if self.zeros is None else self.zeros[:, :, None]
        values = scale[:, :, None] * (codes - np.asarray(zero, np.float32))
        if offset is not None:
            values = values + offset[:, :, None]
        return np.asarray(values.reshape(outputs, inputs), np.float32)

    def _scale_and_offset(self) -> tuple[Floats, Floats | None]:
        levels = self.levels
        if levels is None:
            assert self.scales is not None
            return self.scales, self.offsets
        each = SUPER // self.group
        outer = np.repeat(levels.outer.astype(np.float32), each, 1)
        scale = outer * levels.codes.astype(np.float32)
        if levels.least_outer is None or levels.least_codes is None:
            return scale, None
        least = np.repeat(levels.least_outer.astype(np.float32), each, 1)
        return scale, -least * levels.least_codes.astype(np.float32)
