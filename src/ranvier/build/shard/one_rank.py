"""From a program over all ranks to the program of one: what a compiler without a partitioner takes.

The body of the manual computation is already one rank's program, with local shapes and explicit
collectives; it becomes main.
"""

from __future__ import annotations

from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func

__all__ = ["one_rank"]


def one_rank(module: Any, donated: range, ranks: int) -> Any:
    """Replace main by its manual computation's body, in place; returns the module.

    `donated` are the flat arguments that the outputs 0, 1, ... take over. The ranks
    become replicas.
    """
    with module.context, ir.Location.unknown():
        main = next(op for op in module.body.operations if _symbol(op) == "main")
        inner = [op.operation for op in main.regions[0].blocks[0].operations]
        (manual,) = [op for op in inner if op.name == "sdy.manual_computation"]
        arguments = list(main.regions[0].blocks[0].arguments)
        assert list(manual.operands) == arguments, "main does more than call the computation"
        assert len(inner) == 2, "main computes outside of the manual computation"
        block = manual.regions[0].blocks[0]
        results = [value.type for value in _end(block).operands]
        kinds = [argument.type for argument in block.arguments]
        with ir.InsertionPoint(module.body):
            kind = ir.FunctionType.get(kinds, results)
            own = func.FuncOp("one_rank", kind)
        block.append_to(own.regions[0])
        end = _end(block)
        with ir.InsertionPoint(end):
            func.ReturnOp(list(end.operands))
        end.erase()
        own.attributes["arg_attrs"] = ir.ArrayAttr.get(
            [_aliased(donated, i) for i in range(len(kinds))]
        )
        main.operation.erase()
        own.attributes["sym_visibility"] = ir.StringAttr.get("public")
        own.attributes["sym_name"] = ir.StringAttr.get("main")
        for op in list(module.body.operations):
            if op.operation.name == "sdy.mesh":
                op.operation.erase()
        for name, count in (("num_partitions", 1), ("num_replicas", ranks)):
            module.operation.attributes[f"mhlo.{name}"] = _int(count)
        _permute_replicas(module.operation)
        module.operation.verify()
    return module


def _permute_replicas(op: Any) -> None:
    """With a channel these count partitions, of which there is one; without it, replicas."""
    for inner in (op for region in op.regions for block in region.blocks for op in block):
        if inner.operation.name in ("stablehlo.collective_permute", "stablehlo.all_to_all"):
            del inner.operation.attributes["channel_handle"]
        _permute_replicas(inner.operation)


def _aliased(donated: range, index: int) -> Any:
    if index not in donated:
        return ir.DictAttr.get({})
    return ir.DictAttr.get({"tf.aliasing_output": _int(donated.index(index))})


def _int(value: int) -> Any:
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(32), value)


def _end(block: Any) -> Any:
    return list(block.operations)[-1].operation


def _symbol(op: Any) -> str:
    return str(ir.StringAttr(op.attributes["sym_name"]).value)
