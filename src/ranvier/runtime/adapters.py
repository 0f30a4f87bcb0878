"""AdapterSlots: the device's slots of LoRA adapters, filled piece by piece by a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights, part_of
from ranvier.core.errors import DeviceError, StateLost
from ranvier.runtime.compat import LoadedProgram
from ranvier.runtime.mesh import RankMesh

__all__ = ["TABLE", "AdapterSlots", "Stacks"]

TABLE = "lora.table"

Stacks = Mapping[str, tuple[list[int], str]]
"""The manifest's model["adapter_stacks"]: name -> (shape [slots, pieces, ...], dtype)."""


class AdapterSlots:
    """Stacks that every step reads, under the names of its weights; each rank has its own.

    `arrays` holds what the next step takes; a placement replaces entries of it. The table, where
    the kernels have one, says what is in a slot, and changes when all pieces are there.
    """

    def __init__(self, stacks: Stacks, program: LoadedProgram, mesh: RankMesh) -> None:
        self._program = program
        self._mesh = mesh
        self._forms = {
            name: (tuple(shape), np.dtype(getattr(ml_dtypes, kind, kind)))
            for name, (shape, kind) in stacks.items()
        }
        self._moved = sorted(name for name in stacks if name != TABLE)
        self.arrays: dict[str, jax.Array] = {}
        self._clear()

    def place(self, slot: int, adapter: AdapterWeights | None) -> Iterator[None]:
        """As Runner.place_adapter."""
        self._tell(slot, None)
        if adapter is None:
            return
        for piece in range(adapter.pieces):
            parts = {name: self._own(adapter.arrays[name]) for name in self._moved}
            self._move(slot, piece, {name: [p[piece] for p in own] for name, own in parts.items()})
            yield
        self._tell(slot, adapter)

    def warm(self) -> None:
        """Run the program once, on zeros, which are there already."""
        nothing = {name: [np.zeros(self._forms[name][0][2:], self._forms[name][1])
                          for _ in self._mesh.local_ranks] for name in self._moved}  # fmt: skip
        self._move(1, 0, nothing)
        for array in self.arrays.values():
            array.block_until_ready()

    def _own(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The parts of an adapter's array that the ranks of this process take."""
        mesh = self._mesh
        return [part_of(array, rank, len(mesh.devices)) for rank in mesh.local_ranks]

    def _clear(self) -> None:
        """Every slot empty."""
        self.arrays.update({name: self._mesh.zeros(*form) for name, form in self._forms.items()})
        self._tables = [np.zeros(*self._forms[TABLE]) for _ in self._mesh.local_ranks
                        if TABLE in self._forms]  # fmt: skip

    def _tell(self, slot: int, adapter: AdapterWeights | None) -> None:
        if not self._tables:
            return
        for at, table in enumerate(self._tables):
            table[slot - 1] = 0 if adapter is None else self._own(adapter.table)[at]
        self.arrays[TABLE] = self._mesh.put([table.copy() for table in self._tables])

    def _move(self, slot: int, piece: int, values: Mapping[str, list[NDArray[Any]]]) -> None:
        at = self._mesh.same(np.asarray([slot - 1, piece], np.int32))
        # Flat order of (pieces, stacks, inputs): each dict's keys sorted.
        stacks = [self.arrays[name] for name in self._moved]
        pieces = [self._mesh.put(values[name]) for name in self._moved]
        try:
            placed = self._mesh.run_own(self._program, [*pieces, *stacks, at])
        except RuntimeError as error:
            text = f"Placing an adapter in slot {slot} failed: {error}"
            if any(stack.is_deleted() for stack in stacks):
                self._clear()
                raise StateLost(f"{text}; every slot is empty now") from error
            raise DeviceError(text) from error
        self.arrays.update(zip(self._moved, placed, strict=True))
