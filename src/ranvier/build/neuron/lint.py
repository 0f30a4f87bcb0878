"""Read a StableHLO module into the facts that a target's rules look at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jaxlib.mlir import ir

from ranvier.targets.neuron.legality import OpFact, TensorFact, Violation, check

__all__ = ["lint", "read_facts"]

QUOTED = re.compile(r'"([^"]*)"')
ARRAYS = ("base_dilations", "window_dilations", "lhs_dilation", "rhs_dilation", "window_strides")


def lint(module: Any, compiler_target: str) -> list[Violation]:
    """What neuronx-cc would refuse in a module, or get wrong."""
    return check(read_facts(module), compiler_target)


def read_facts(module: Any) -> Iterator[OpFact]:
    """One fact per operation, those of nested regions and private functions among them."""
    with module.context:
        yield from _Reader(module).read()


class _Reader:
    """Walks from main; a private function is read at its first call, under that call's scope."""

    def __init__(self, module: Any) -> None:
        self._functions = {_symbol(op): op.operation for op in module.body.operations}

    def read(self) -> Iterator[OpFact]:
        yield from self._walk(self._functions.pop("main"), "")

    def _walk(self, op: Any, scope: str) -> Iterator[OpFact]:
        for inner in _inner(op):
            fact = _fact(inner, op, scope)
            yield fact
            yield from self._walk(inner, scope)
            if fact.name == "call":
                callee = ir.FlatSymbolRefAttr(inner.attributes["callee"]).value
                function = self._functions.pop(callee, None)
                if function is not None:
                    yield from self._walk(function, fact.location)


def _inner(op: Any) -> Iterator[Any]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation


def _fact(op: Any, parent: Any, scope: str) -> OpFact:
    own = _location(op)
    return OpFact(
        name=_name(op),
        operands=tuple(_tensor(value.type) for value in op.operands),
        results=tuple(_tensor(value.type) for value in op.results),
        location=f"{scope}/{own}" if scope and own else scope or own,
        form=_form(op, parent),
    )


def _name(op: Any) -> str:
    dialect, _, name = str(op.name).partition(".")
    is_plain = dialect in ("stablehlo", "chlo", "func", "builtin")
    return name if is_plain else f"{dialect}.{name}"


def _tensor(kind: Any) -> TensorFact:
    if not isinstance(kind, ir.RankedTensorType):
        return TensorFact(str(kind))
    shape = tuple(
        None if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)
    )
    return TensorFact(str(kind.element_type), shape)


def _location(op: Any) -> str:
    """The path of named scopes; the file's name where there is none."""
    names = [name for name in QUOTED.findall(str(op.location)) if not name.endswith(".py")]
    return names[0] if names else ""


def _form(op: Any, parent: Any) -> dict[str, Any]:
    form: dict[str, Any] = {}
    attributes = op.attributes
    name = _name(op)
    if name == "custom_call":
        form["target"] = ir.StringAttr(attributes["call_target_name"]).value
        config = attributes.get("backend_config")
        form["config"] = str(config).strip('"') if config is not None else ""
    if name == "composite":
        form["composite"] = ir.StringAttr(attributes["name"]).value
    if name == "while":
        form["trip_count"] = _trip_count(op)
    if name == "power":
        form["constants"] = tuple(_constant(value) is not None for value in op.operands)
    if name == "return":
        form["is_program_end"] = _name(parent) == "func" and _symbol(parent) == "main"
    for key in ARRAYS:
        if key in attributes:
            form[key] = [int(size) for size in ir.DenseI64ArrayAttr(attributes[key])]
    if op.regions and name not in ("while", "func"):
        form["bodies"] = tuple(name for name in map(_name, _inner(op)) if name != "return")
    return form


def _symbol(function: Any) -> str:
    return str(ir.StringAttr(function.attributes["sym_name"]).value)


def _trip_count(op: Any) -> int | None:
    """How often a while runs, when it counts from a constant to a constant by a constant."""
    test, body = (region.blocks[0] for region in op.regions)
    compare = list(test.operations)[-1].operands[0].owner
    if isinstance(compare, ir.Block) or _name(compare) != "compare":
        return None
    counter, limit = compare.operands
    if "LT" not in str(compare.attributes["comparison_direction"]):
        return None
    if not isinstance(counter.owner, ir.Block):
        return None
    at = ir.BlockArgument(counter).arg_number
    step = list(body.operations)[-1].operands[at].owner
    start, stop = _constant(op.operands[at]), _constant(limit)
    if isinstance(step, ir.Block) or _name(step) != "add" or start is None or stop is None:
        return None
    by = [_constant(value) for value in step.operands]
    is_counter = [value == body.arguments[at] for value in step.operands]
    if not any(is_counter):
        return None
    stride = by[1] if is_counter[0] else by[0]
    return max(0, -(-(stop - start) // stride)) if stride else None


def _constant(value: Any) -> int | None:
    """The integer of a scalar constant, 0 for any other constant, None for what is computed."""
    owner = value.owner
    while not isinstance(owner, ir.Block) and _name(owner) in ("broadcast_in_dim", "convert"):
        owner = owner.operands[0].owner
    if isinstance(owner, ir.Block) or _name(owner) != "constant":
        return None
    found = re.search(r"dense<(-?\d+)>", str(owner.attributes["value"]))
    return int(found[1]) if found else 0
