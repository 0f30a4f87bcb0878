"""An adapter into the form of an artifact's slots."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights, part_of
from ranvier.weights.lora.form import (
    BLOB,
    DEPTH,
    LANES,
    AdapterForm,
    AdapterModule,
    rank_padded,
    stack_shapes,
)
from ranvier.weights.lora.read import Lora, LoraPair, read_lora
from ranvier.weights.shards.runs import take

__all__ = ["pack_adapter", "places", "read_adapter"]

DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def read_adapter(folder: Path, form: AdapterForm) -> AdapterWeights:
    """A PEFT folder in the form of an artifact's slots. Raises AdapterError.

    Cost: reads the files once; some 10 ms for 10 MB.
    """
    return pack_adapter(read_lora(folder, form.shapes, form.rank_max), form)


def pack_adapter(lora: Lora, form: AdapterForm) -> AdapterWeights:
    """Lay out an adapter as the slots' kernels read it, for all devices that share the model.

    Cost: the reference's matrices that are whole on every core are there once a stage; a CPU slot
    is one run of bytes, which every core has of its own.
    """
    table = np.zeros((form.stages, form.layers, len(form.modules), 3), np.int32)
    arrays = _cpu(lora, form, table) if form.kernels == "cpu" else _reference(lora, form)
    return AdapterWeights(lora.digest, lora.rank, arrays, table)


def _pairs(
    lora: Lora, form: AdapterForm, stage: int, core: int
) -> Iterator[tuple[int, int, AdapterModule, LoraPair]]:
    """What one core of a stage takes, by its own layers."""
    for layer in range(form.layers):
        for index, module in enumerate(form.modules):
            pair = lora.pairs.get(module.name_at(stage * form.layers + layer))
            if pair is not None:
                yield layer, index, module, _cut(pair, module, core)


def _cut(pair: LoraPair, module: AdapterModule, core: int) -> LoraPair:
    if module.cut is None:
        return pair
    runs = module.cut.cores[core]
    if module.cut.side == "outputs":
        return LoraPair(pair.a, take(pair.b, runs, 0))
    return LoraPair(take(pair.a, runs, 1), pair.b)


def _ranks(form: AdapterForm) -> Iterator[tuple[int, int]]:
    """(stage, core) of each device, in order."""
    return itertools.product(range(form.stages), range(form.cores))


def _reference(lora: Lora, form: AdapterForm) -> dict[str, NDArray[Any]]:
    """A [L, I, ranks of the linear's modules] and B [L, R, O]; what is absent is 0."""
    arrays = {
        name: np.zeros((_parts(name, form), *shape[1:]), DTYPES[kind])
        for name, (shape, kind) in stack_shapes(form).items()
    }
    first, column = places(form)
    for rank, (stage, core) in enumerate(_ranks(form)):
        own = {
            name: part_of(array, rank, form.cores * form.stages)
            for name, array in arrays.items()
            if core == 0 or len(array) > form.stages
        }
        for layer, _, module, pair in _pairs(lora, form, stage, core):
            depth, at, out = len(pair.a), first[module.name], column[module.name]
            if (a := own.get(f"lora.{module.linear}.a")) is not None:
                a[layer, :, at : at + depth] = pair.a.T
            if (b := own.get(f"lora.{module.linear}.b")) is not None:
                b[layer, :depth, out : out + module.outputs] = pair.b.T
    return arrays


def _parts(name: str, form: AdapterForm) -> int:
    """Parts of a reference's array: one a device where it is cut, else one a stage."""
    _, linear, side = name.split(".")
    module = next(module for module in form.modules if module.linear == linear)
    is_cut = module.cut is not None and module.cut.side == ("inputs" if side == "a" else "outputs")
    return form.stages * (form.cores if is_cut else 1)


def places(form: AdapterForm) -> tuple[dict[str, int], dict[str, int]]:
    """Where each module's ranks and outputs begin in the reference's A and B."""
    first: dict[str, int] = {}
    column: dict[str, int] = {}
    ranks: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for module in form.modules:
        first[module.name] = ranks.get(module.linear, 0)
        column[module.name] = outputs.get(module.linear, 0)
        ranks[module.linear] = first[module.name] + form.rank_max
        outputs[module.linear] = column[module.name] + module.outputs
    return first, column


def _cpu(lora: Lora, form: AdapterForm, table: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """A run of lines a device, layer after layer, in whole pages; fills the table."""
    ends = [_plan(lora, form, stage, table[stage]) for stage in range(form.stages)]
    (_, _, width), kind = stack_shapes(form)[BLOB]
    per_line = LANES * form.line
    pages = max(1, -(-max(ends) * per_line // width))
    runs = np.zeros((form.cores * form.stages, pages * width), DTYPES[kind])
    for run, (stage, core) in zip(runs, _ranks(form), strict=True):
        for layer, index, module, pair in _pairs(lora, form, stage, core):
            _, a, b = (int(place) * per_line for place in table[stage, layer, index])
            _put_a(run[a:b], pair.a, form.line)
            _put_b(run[b:], pair.b, module, form.line)
    return {BLOB: runs.reshape(len(runs), pages, width)}


def _plan(lora: Lora, form: AdapterForm, stage: int, table: NDArray[np.int32]) -> int:
    """Fill a stage's table, which is that of each of its cores; lines in all."""
    end = 0
    for layer, index, module, pair in _pairs(lora, form, stage, 0):
        a, b = form.lines(module, len(pair.a))
        table[layer, index] = rank_padded(len(pair.a)), end, end + a
        end += a + b
    return end


def _put_a(out: NDArray[Any], a: NDArray[np.float32], line: int) -> None:
    """[r, I] to tiles of 16 ranks: [r/16, I/line, 16, line], padded with 0."""
    rank, inputs = a.shape
    wide = np.zeros((-(-rank // LANES) * LANES, -(-inputs // DEPTH) * DEPTH), out.dtype)
    wide[:rank, :inputs] = a
    tiles = wide.reshape(-1, LANES, wide.shape[1] // line, line).transpose(0, 2, 1, 3)
    out.reshape(tiles.shape)[...] = tiles


def _put_b(out: NDArray[Any], b: NDArray[np.float32], module: AdapterModule, line: int) -> None:
    """[O, r] to the fused linear's tiles of 16 outputs: [tiles, r/line, 16, line]."""
    outputs, rank = b.shape
    wide = np.zeros((module.tiles * LANES, rank_padded(rank)), out.dtype)
    wide[module.lane : module.lane + outputs, :rank] = b
    tiles = wide.reshape(-1, LANES, wide.shape[1] // line, line).transpose(0, 2, 1, 3)
    out[: tiles.size].reshape(tiles.shape)[...] = tiles
