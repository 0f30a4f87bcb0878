"""An adapter into the form of an artifact's slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights
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

__all__ = ["pack_adapter", "places", "read_adapter"]

DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def read_adapter(folder: Path, form: AdapterForm) -> AdapterWeights:
    """A PEFT folder in the form of an artifact's slots. Raises AdapterError.

    Cost: reads the files once; some 10 ms for 10 MB.
    """
    modules = {
        module.name.format(layer): (module.outputs, module.inputs)
        for module in form.modules
        for layer in range(form.layers)
    }
    return pack_adapter(read_lora(folder, modules, form.rank_max), form)


def pack_adapter(lora: Lora, form: AdapterForm) -> AdapterWeights:
    """Lay out an adapter as the slots' kernels read it."""
    table = np.zeros((form.layers, len(form.modules), 3), np.int32)
    arrays = _cpu(lora, form, table) if form.kernels == "cpu" else _reference(lora, form)
    return AdapterWeights(lora.digest, lora.rank, arrays, table)


def _pairs(lora: Lora, form: AdapterForm) -> Iterator[tuple[int, int, AdapterModule, LoraPair]]:
    for layer in range(form.layers):
        for index, module in enumerate(form.modules):
            pair = lora.pairs.get(module.name.format(layer))
            if pair is not None:
                yield layer, index, module, pair


def _reference(lora: Lora, form: AdapterForm) -> dict[str, NDArray[Any]]:
    """A [L, I, ranks of the linear's modules] and B [L, R, O]; what is absent is 0."""
    shapes = stack_shapes(form)
    arrays = {name: np.zeros(shape[1:], DTYPES[kind]) for name, (shape, kind) in shapes.items()}
    first, column = places(form)
    for layer, _, module, pair in _pairs(lora, form):
        rank, at, out = len(pair.a), first[module.name], column[module.name]
        arrays[f"lora.{module.linear}.a"][layer, :, at : at + rank] = pair.a.T
        b = arrays[f"lora.{module.linear}.b"]
        b[layer, :rank, out : out + module.outputs] = pair.b.T
    return arrays


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
    """One run of lines, layer after layer, in whole pages; fills the table."""
    end = 0
    for layer, index, module, pair in _pairs(lora, form):
        a, b = form.lines(module, len(pair.a))
        table[layer, index] = rank_padded(len(pair.a)), end, end + a
        end += a + b
    (_, _, width), kind = stack_shapes(form)[BLOB]
    per_line = LANES * form.line
    pages = max(1, -(-end * per_line // width))
    run = np.zeros(pages * width, DTYPES[kind])
    for layer, index, module, pair in _pairs(lora, form):
        _, a, b = (int(place) * per_line for place in table[layer, index])
        _put_a(run[a:b], pair.a, form.line)
        _put_b(run[b:], pair.b, module, form.line)
    return {BLOB: run.reshape(pages, width)}


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
