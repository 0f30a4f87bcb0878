"""AdapterWeights: a LoRA adapter as arrays that a device slot takes as they are.

Knows nothing of files (weights/lora reads them) or of devices (Runner.place_adapter moves them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AdapterWeights", "part_of"]


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter, its scale folded in, in the form of one artifact's slots.

    `digest` (hex) names the content of its files: equal digests are the same adapter. `rank` is the
    largest of its ranks. `arrays` are pieces of the device's stacks, by their names: [parts,
    pieces, ...], at most as many pieces as a slot has; the rest of the slot is not read. `table`
    int32 [parts, L, P, 3] says where in the slot each linear of each layer lies: (rank, place of A,
    place of B); rank 0: it is absent. Devices that share the model have equal shares of an array's
    parts (`part_of`): one part is the same on all of them.
    """

    digest: str
    rank: int
    arrays: dict[str, NDArray[Any]]
    table: NDArray[np.int32]

    @cached_property
    def bytes(self) -> int:
        """What it takes of host memory."""
        return self.table.nbytes + sum(array.nbytes for array in self.arrays.values())

    @property
    def pieces(self) -> int:
        """How many moves it takes to fill a slot."""
        return max(int(array.shape[1]) for array in self.arrays.values())


def part_of(array: NDArray[Any], device: int, devices: int) -> NDArray[Any]:
    """The part of an array [parts, ...] that the device-th of `devices` takes."""
    part: NDArray[Any] = array[device * len(array) // devices]
    return part
