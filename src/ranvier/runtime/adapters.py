"""AdapterSlots: the device's slots of LoRA adapters, filled piece by piece by a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import DeviceError, StateLost
from ranvier.runtime.compat import LoadedProgram

__all__ = ["TABLE", "AdapterSlots", "Stacks"]

TABLE = "lora.table"

Stacks = Mapping[str, tuple[list[int], str]]
"""The manifest's model["adapter_stacks"]: name -> (shape [slots, pieces, ...], dtype)."""


class AdapterSlots:
    """Stacks that every step reads, under the names of its weights.

    `arrays` holds what the next step takes; a placement replaces entries of it. The table, where
    the kernels have one, says what is in a slot, and changes when all pieces are there.
    """

    def __init__(self, stacks: Stacks, program: LoadedProgram) -> None:
        self._program = program
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
        for piece in range(len(adapter.arrays[self._moved[0]])):
            self._move(slot, piece, {name: adapter.arrays[name][piece] for name in self._moved})
            yield
        self._tell(slot, adapter)

    def warm(self) -> None:
        """Run the program once, on zeros, which are there already."""
        nothing = {name: np.zeros(self._forms[name][0][2:], self._forms[name][1])
                   for name in self._moved}  # fmt: skip
        self._move(1, 0, nothing)
        for array in self.arrays.values():
            array.block_until_ready()

    def _clear(self) -> None:
        """Every slot empty."""
        self.arrays.update({name: jnp.zeros(*form) for name, form in self._forms.items()})
        self._table = np.zeros(*self._forms[TABLE]) if TABLE in self._forms else None

    def _tell(self, slot: int, adapter: AdapterWeights | None) -> None:
        if self._table is not None:
            self._table[slot - 1] = 0 if adapter is None else adapter.table
            self.arrays[TABLE] = jax.device_put(self._table.copy())

    def _move(self, slot: int, piece: int, values: Mapping[str, np.ndarray]) -> None:
        at = np.asarray([slot - 1, piece], np.int32)
        # Flat order of (weights, state, inputs): no weights, then each dict's keys sorted.
        stacks = [self.arrays[name] for name in self._moved]
        inputs = [jax.device_put(at), *(jax.device_put(values[name]) for name in self._moved)]
        try:
            placed = self._program([*stacks, *inputs])
        except RuntimeError as error:
            text = f"Placing an adapter in slot {slot} failed: {error}"
            if any(stack.is_deleted() for stack in stacks):
                self._clear()
                raise StateLost(f"{text}; every slot is empty now") from error
            raise DeviceError(text) from error
        self.arrays.update(zip(self._moved, placed, strict=True))
