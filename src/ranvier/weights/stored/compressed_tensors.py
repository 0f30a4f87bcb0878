"""compressed-tensors folders: int8 W8A8 and W8A16, packed W4A16 and W8A16, fp8.

Source: the format of the `compressed-tensors` package (0.9 to 0.20); the tests compare with what it
writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import CheckpointError
from ranvier.weights.quantised import QuantTensor
from ranvier.weights.stored.fp8 import fp8_tensor
from ranvier.weights.stored.gptq import group_count
from ranvier.weights.stored.tensors import (
    Fields,
    Tensors,
    check_names,
    from_zeros,
    is_named,
    matrix,
    refuse_zero_scales,
    scales_of,
    sizes_of,
    unpack_bits,
)

__all__ = ["CompressedTensors", "compressed_tensors"]

FORMATS = ("int-quantized", "naive-quantized", "float-quantized", "pack-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")


def compressed_tensors(fields: Fields) -> CompressedTensors:
    """The config of `quant_method: compressed-tensors`. Raises CheckpointError."""
    for name in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        if fields.get(name, {}):
            raise fields.error(name, "none")
    groups = fields.inner("config_groups")
    if not groups.values:
        raise fields.error("config_groups", "at least one group")
    form = fields.get("format")
    found = tuple(_rule(groups.inner(name), form) for name in groups.values)
    return CompressedTensors(found, tuple(fields.strings("ignore")))


@dataclass(frozen=True)
class Rule:
    """How the modules that `targets` name are stored; group 0: one scale an output or a tensor."""

    targets: tuple[str, ...]
    form: str
    kind: Literal["int", "float"]
    bits: Literal[4, 8]
    group: int
    block: tuple[int, int]
    is_symmetric: bool
    activation_bits: Literal[8, 16]

    @property
    def name(self) -> str:
        kind = "fp" if self.kind == "float" else "int"
        group = f" g{self.group}" if self.group else ""
        return f"{kind}{self.bits} W{self.bits}A{self.activation_bits}{group}"


def _rule(fields: Fields, form: Any) -> Rule:
    weights = fields.inner("weights")
    kind = weights.choice("type", ("int", "float"), "int")
    bits = weights.choice("num_bits", (4, 8) if kind == "int" else (8,), 8)
    strategy = weights.choice("strategy", STRATEGIES)
    if weights.get("dynamic", False):
        raise weights.error("dynamic", "false")
    if weights.get("actorder") in ("group", "dynamic"):
        raise weights.error("actorder", "weight, static or none: inputs must stay in order")
    own = Fields({"format": fields.get("format", form)}, fields.where)
    form = own.choice("format", FORMATS)
    block = weights.get("block_structure") if strategy == "block" else (0, 0)
    if not isinstance(block, (list, tuple)) or len(block) != 2:
        raise weights.error("block_structure", "two numbers")
    group = weights.get("group_size") if strategy == "group" else 0
    if type(group) is not int or (strategy == "group" and group <= 0):
        raise weights.error("group_size", "a positive number")
    return Rule(
        targets=tuple(fields.strings("targets")),
        form=form,
        kind=kind,
        bits=bits,
        group=group,
        block=(int(block[0]), int(block[1])),
        is_symmetric=bool(weights.get("symmetric", True)),
        activation_bits=_activations(fields, kind),
    )


def _activations(fields: Fields, kind: str) -> Literal[8, 16]:
    """8 where int8 weights meet activations that are quantised per token while serving."""
    if fields.get("input_activations") is None:
        return 16
    inputs = fields.inner("input_activations")
    inputs.choice("type", (kind,), "int")
    inputs.choice("num_bits", (8,), 8)
    if kind == "float":
        return 16  # kept to 16 bits, which loses less
    inputs.choice("dynamic", (True,), False)
    inputs.choice("symmetric", (True,), True)
    inputs.choice("strategy", ("token",), "token")
    return 8


@dataclass(frozen=True)
class CompressedTensors:
    """weight or weight_packed, with weight_scale, weight_zero_point and weight_shape beside."""

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    markers: tuple[str, ...] = ("weight_packed", "weight_scale")
    suffixes: tuple[str, ...] = (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
        "input_scale", "input_zero_point",
    )  # fmt: skip

    @property
    def name(self) -> str:
        return f"compressed-tensors {' + '.join(sorted({rule.name for rule in self.rules}))}"

    def check(self, modules: Sequence[str], dense: Sequence[str]) -> None:
        """Raises CheckpointError where names and tensors disagree."""
        check_names(self.ignored, modules, dense, "quantization_config.ignore")
        for rule in self.rules:
            for target in rule.targets:
                if not any(_is_target(target, module) for module in modules):
                    raise CheckpointError(
                        f"quantization_config.config_groups: target {target!r} matches no module."
                    )

    def shape(self, tensors: Tensors, module: str) -> tuple[int, int]:
        packed, rule = f"{module}.weight_packed", self._rule(module)
        if packed not in tensors.names():
            return sizes_of(tensors, f"{module}.weight")
        outputs, words = sizes_of(tensors, packed)
        inputs = words * 32 // rule.bits
        name = f"{module}.weight_shape"
        if name in tensors.names():
            sizes = matrix(tensors, name, [(2,)], "int64 int32").tolist()
            if sizes[0] != outputs or not inputs - 32 // rule.bits < sizes[1] <= inputs:
                raise CheckpointError(f"{name} says {sizes}, the codes {[outputs, inputs]}.")
            inputs = int(sizes[1])
        return outputs, inputs

    def read(self, tensors: Tensors, module: str) -> QuantTensor:
        """One matrix. Raises CheckpointError naming the tensor."""
        rule = self._rule(module)
        if rule.kind == "float":
            return fp8_tensor(tensors, module, rule.block)
        shape = self.shape(tensors, module)
        if rule.block[0]:
            raise CheckpointError(f"{module}: int{rule.bits} in blocks is not supported.")
        groups = group_count(module, shape[1], rule.group)
        name = f"{module}.weight_scale"
        shapes: list[tuple[int, ...]] = [(shape[0], groups)]
        if not rule.group:
            shapes += [(), (1,), (shape[0],)]
        scales = scales_of(tensors, name, shapes)
        scales = np.broadcast_to(scales.reshape(-1, groups), (shape[0], groups)).copy()
        found = _with_zeros(tensors, module, rule, _codes(tensors, module, rule, shape), scales)
        refuse_zero_scales(found, name)
        return found

    def _rule(self, module: str) -> Rule:
        found = [r for r in self.rules if any(_is_target(t, module) for t in r.targets)]
        # A name or an expression says more than a class.
        exact = [
            r for r in found if any(t != "Linear" and _is_target(t, module) for t in r.targets)
        ]
        if not found:
            raise CheckpointError(f"{module}: no target of quantization_config matches it.")
        return (exact or found)[0]


def _is_target(target: str, module: str) -> bool:
    return target == "Linear" or is_named(target, module)


def _codes(tensors: Tensors, module: str, rule: Rule, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Unsigned codes: what is stored, plus half the range."""
    if rule.form == "pack-quantized":
        words = -(-shape[1] * rule.bits // 32)
        packed = matrix(tensors, f"{module}.weight_packed", [(shape[0], words)], "int32")
        return np.ascontiguousarray(unpack_bits(packed, rule.bits)[:, : shape[1]])
    stored = matrix(tensors, f"{module}.weight", [shape], "int8")
    half = 1 << (rule.bits - 1)
    wide = stored.view(np.uint8) + np.uint8(half)
    if rule.bits == 4 and int(wide.max(initial=0)) > 15:
        raise CheckpointError(f"{module}.weight: a code does not fit into 4 bits.")
    return wide


def _with_zeros(
    tensors: Tensors, module: str, rule: Rule, codes: NDArray[np.uint8], scales: Any
) -> QuantTensor:
    half = 1 << (rule.bits - 1)
    zeros: Any = half
    name = f"{module}.weight_zero_point"
    if not rule.is_symmetric:
        outputs, groups = scales.shape
        words = -(-outputs * rule.bits // 32)
        shapes: list[tuple[int, ...]] = [(outputs, groups), (words, groups)]
        if not rule.group:
            shapes += [(), (1,), (outputs,)]
        stored = matrix(tensors, name, shapes)
        if stored.dtype == np.int32 and rule.form == "pack-quantized":
            zeros = np.ascontiguousarray(unpack_bits(stored.T, rule.bits).T[:outputs])
        else:
            wide = stored.astype(np.int32).reshape(-1, groups) + half
            zeros = np.broadcast_to(wide, (outputs, groups)).copy()
    found = from_zeros(codes, rule.bits, scales, zeros)
    if rule.activation_bits == 16:
        return found
    if found.zero or found.offsets is not None or found.group != found.shape[1]:
        raise CheckpointError(
            f"{module}: 8-bit activations need symmetric weights with one scale an output."
        )
    return replace(found, activation_bits=8)
