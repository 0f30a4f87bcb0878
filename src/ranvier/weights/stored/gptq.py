"""GPTQ and AWQ folders: codes in int32 words along one axis, scales and zero points beside them.

Source: the conventions of AutoGPTQ / GPTQModel (words along the inputs, zero points stored less one
in version 1) and AutoAWQ's `gemm` version (words along the outputs, nibbles interleaved).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.stored.tensors import (
    Fields,
    Tensors,
    check_names,
    from_zeros,
    matrix,
    refuse_zero_scales,
    scales_of,
    sizes_of,
    unpack_bits,
)

__all__ = ["Awq", "Gptq", "awq", "gptq"]

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble of a word that holds each of its eight outputs."""


def gptq(fields: Fields) -> Gptq:
    """The config of `quant_method: gptq`. Raises CheckpointError."""
    bits = fields.choice("bits", (4, 8))
    form = fields.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    if fields.get("dynamic", {}):
        raise fields.error("dynamic", "no rules of single modules")
    return Gptq(bits=bits, group=_group(fields), zero_shift=1 if form == "gptq" else 0)


def awq(fields: Fields) -> Awq:
    """The config of `quant_method: awq`. Raises CheckpointError."""
    fields.choice("version", ("gemm", "GEMM"), "gemm")
    fields.choice("bits", (4,))
    ignored = tuple(fields.strings("modules_to_not_convert"))
    return Awq(group=_group(fields), ignored=ignored, has_zeros=fields.get("zero_point", True))


def _group(fields: Fields) -> int:
    """Inputs of a group, 0 for all of them."""
    group = fields.get("group_size", fields.get("q_group_size"))
    if not isinstance(group, int) or group < -1 or group == 0:
        raise fields.error("group_size", "-1 or a positive number")
    return max(group, 0)


@dataclass(frozen=True)
class Gptq:
    """qweight [I / n, O], qzeros [groups, O / n], scales [groups, O], g_idx [I]."""

    bits: Literal[4, 8]
    group: int
    zero_shift: int
    markers: tuple[str, ...] = ("qweight",)
    suffixes: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"gptq int{self.bits}{f' g{self.group}' if self.group else ''}"

    def check(self, modules: Sequence[str], dense: Sequence[str]) -> None:
        """GPTQ's config names no modules: those with codes are the quantised ones."""
        if not modules:
            raise CheckpointError(f"No tensor ends in .qweight ({len(dense)} linears are dense).")

    def shape(self, tensors: Tensors, module: str) -> tuple[int, int]:
        words, outputs = sizes_of(tensors, f"{module}.qweight")
        return outputs, words * (32 // self.bits)

    def read(self, tensors: Tensors, module: str) -> QuantTensor:
        """One matrix. Raises CheckpointError naming the tensor."""
        outputs, inputs = self.shape(tensors, module)
        groups = group_count(module, inputs, self.group)
        packed = matrix(
            tensors, f"{module}.qweight", [(inputs * self.bits // 32, outputs)], "int32"
        )
        codes = unpack_bits(packed.T, self.bits)
        scales = scales_of(tensors, f"{module}.scales", [(groups, outputs)]).T
        words = (groups, outputs * self.bits // 32)
        zeros = unpack_bits(matrix(tensors, f"{module}.qzeros", [words], "int32"), self.bits)
        self._check_order(tensors, module, inputs, groups)
        shifted = zeros.T.astype(np.int32) + self.zero_shift
        found = from_zeros(codes, self.bits, np.ascontiguousarray(scales), shifted)
        refuse_zero_scales(found, f"{module}.scales")
        return found

    def _check_order(self, tensors: Tensors, module: str, inputs: int, groups: int) -> None:
        name = f"{module}.g_idx"
        if name not in tensors.names():
            return
        order = matrix(tensors, name, [(inputs,)])
        if not np.array_equal(order, np.arange(inputs) // (inputs // groups)):
            raise CheckpointError(
                f"{name}: its inputs are out of order (desc_act), which is not supported.",
                hint="Use a GPTQ checkpoint made with desc_act=false, or an AWQ one.",
            )


@dataclass(frozen=True)
class Awq:
    """qweight [I, O / 8], qzeros [groups, O / 8], scales [groups, O]."""

    group: int
    ignored: tuple[str, ...]
    has_zeros: bool
    markers: tuple[str, ...] = ("qweight",)
    suffixes: tuple[str, ...] = ("qweight", "qzeros", "scales")

    @property
    def name(self) -> str:
        return f"awq int4{f' g{self.group}' if self.group else ''}"

    def check(self, modules: Sequence[str], dense: Sequence[str]) -> None:
        """Raises CheckpointError where names and tensors disagree."""
        check_names(self.ignored, modules, dense, "modules_to_not_convert")

    def shape(self, tensors: Tensors, module: str) -> tuple[int, int]:
        inputs, words = sizes_of(tensors, f"{module}.qweight")
        return words * 8, inputs

    def read(self, tensors: Tensors, module: str) -> QuantTensor:
        """One matrix. Raises CheckpointError naming the tensor."""
        outputs, inputs = self.shape(tensors, module)
        groups = group_count(module, inputs, self.group)
        codes = _awq_order(matrix(tensors, f"{module}.qweight", [(inputs, outputs // 8)], "int32"))
        scales = scales_of(tensors, f"{module}.scales", [(groups, outputs)])
        zeros: Any = 8
        if self.has_zeros:
            words = matrix(tensors, f"{module}.qzeros", [(groups, outputs // 8)], "int32")
            zeros = np.ascontiguousarray(_awq_order(words).T)
        found = from_zeros(np.ascontiguousarray(codes.T), 4, np.ascontiguousarray(scales.T), zeros)
        refuse_zero_scales(found, f"{module}.scales")
        return found


def group_count(module: str, inputs: int, group: int) -> int:
    """How many groups the inputs make. Raises CheckpointError."""
    if group and inputs % group:
        raise CheckpointError(f"{module}: groups of {group} do not divide its {inputs} inputs.")
    return inputs // group if group else 1


def _awq_order(packed: NDArray[Any]) -> NDArray[np.uint8]:
    words = unpack_bits(packed, 4).reshape(*packed.shape, 8)
    return words[..., AWQ_PLACES].reshape(packed.shape[0], -1)
