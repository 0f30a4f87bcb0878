"""FP8 folders: e4m3 weights with a scale per tensor, per output or per block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.stored.tensors import (
    Fields,
    Tensors,
    check_names,
    matrix,
    refuse_zero_scales,
    scales_of,
    sizes_of,
)

__all__ = ["Fp8", "block_scales", "fp8", "fp8_tensor"]

GROUP_MIN = 16


def fp8(fields: Fields) -> Fp8:
    """The config of `quant_method: fp8`. Raises CheckpointError."""
    fields.choice("activation_scheme", ("static", "dynamic"), "dynamic")
    fields.choice("fmt", ("e4m3",), "e4m3")
    block = fields.get("weight_block_size")
    sizes = block if isinstance(block, list) else [0, 0]
    if len(sizes) != 2 or not all(type(size) is int and size >= 0 for size in sizes):
        raise fields.error("weight_block_size", "two numbers: outputs and inputs of a block")
    ignored = (*fields.strings("modules_to_not_convert"), *fields.strings("ignored_layers"))
    return Fp8(block=(sizes[0], sizes[1]), ignored=ignored)


@dataclass(frozen=True)
class Fp8:
    """weight e4m3 [O, I]; weight_scale [], [1] or [O, 1]; by block: weight_scale_inv.

    Scales of activations are not used: activations are kept to 16 bits, which loses less.
    """

    block: tuple[int, int]
    ignored: tuple[str, ...]
    markers: tuple[str, ...] = ("weight_scale", "weight_scale_inv")
    suffixes: tuple[str, ...] = (
        "weight_scale", "weight_scale_inv", "input_scale", "activation_scale",
    )  # fmt: skip

    @property
    def name(self) -> str:
        return f"fp8 e4m3 {'x'.join(map(str, self.block))}" if self.block[0] else "fp8 e4m3"

    def check(self, modules: Sequence[str], dense: Sequence[str]) -> None:
        """Raises CheckpointError where names and tensors disagree."""
        check_names(self.ignored, modules, dense, "modules_to_not_convert")

    def shape(self, tensors: Tensors, module: str) -> tuple[int, int]:
        return sizes_of(tensors, f"{module}.weight")

    def read(self, tensors: Tensors, module: str) -> QuantTensor:
        """One matrix. Raises CheckpointError naming the tensor."""
        return fp8_tensor(tensors, module, self.block)


def fp8_tensor(tensors: Tensors, module: str, block: tuple[int, int]) -> QuantTensor:
    """One e4m3 matrix with its scales; block (0, 0): per tensor or per output."""
    outputs, inputs = sizes_of(tensors, f"{module}.weight")
    weight = matrix(tensors, f"{module}.weight", [(outputs, inputs)], "float8_e4m3fn")
    codes = weight.view(np.uint8)
    if ((codes & 0x7F) == 0x7F).any():
        raise CheckpointError(f"{module}.weight: a weight is not a number.")
    if block[0]:
        known = tensors.names()
        names = [f"{module}.weight_scale_inv", f"{module}.weight_scale"]
        name = next((n for n in names if n in known), names[0])
        scales, group = block_scales(tensors, name, (outputs, inputs), block)
    else:
        name = f"{module}.weight_scale"
        found = scales_of(tensors, name, [(), (1,), (outputs,), (outputs, 1)])
        scales, group = np.broadcast_to(found.reshape(-1, 1), (outputs, 1)).copy(), inputs
    tensor = QuantTensor(codes=codes, bits=8, group=group, kind="fp8", scales=scales)
    refuse_zero_scales(tensor, name)
    return tensor


def block_scales(
    tensors: Tensors, name: str, shape: tuple[int, int], block: tuple[int, int]
) -> tuple[NDArray[np.float32], int]:
    """Scales of blocks as scales of groups [O, I / group], and the group.

    A last block may be cut off: the group is then the largest that divides block and inputs.
    """
    (outputs, inputs), (tall, wide) = shape, block
    wanted = (-(-outputs // tall), -(-inputs // wide))
    found: NDArray[Any] = scales_of(tensors, name, [wanted])
    group = math.gcd(inputs, wide)
    if group < GROUP_MIN:
        raise CheckpointError(f"{name}: blocks of {wide} do not divide {inputs} inputs.")
    rows = np.arange(outputs) // tall
    columns = np.arange(inputs // group) * group // wide
    return np.ascontiguousarray(found[rows][:, columns]), group
