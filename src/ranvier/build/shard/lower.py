"""One rank's step over the mesh of all ranks, for tracing.

Each rank brings its own weights and state, whatever their form: for jax they are joined along their
first axis. Inputs are the same on every rank, and so is the output.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AbstractMesh

from ranvier.build.shard.rank import Parallel
from ranvier.nn.shards import AXES

__all__ = ["over_ranks"]


def over_ranks(
    function: Any,
    arguments: tuple[Any, Any, Any],
    parallel: Parallel,
    *,
    has_output: bool = True,
) -> tuple[Any, Any]:
    """(the function over all ranks, its arguments) of one rank's step and arguments.

    `has_output`: beside the state.
    """
    spec: Any = jax.sharding.PartitionSpec
    own, same = spec(AXES), spec()
    weights, state, inputs = arguments
    step = jax.shard_map(
        function, mesh=AbstractMesh((parallel.pipeline, parallel.tensor), AXES),
        in_specs=(own, own, same), out_specs=(own, same) if has_output else own, check_vma=False,
    )  # fmt: skip
    return step, (_joined(weights, parallel), _joined(state, parallel), inputs)


def _joined(group: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    struct: Any = jax.ShapeDtypeStruct
    return {
        name: struct((parallel.ranks * part.shape[0], *part.shape[1:]), part.dtype)
        for name, part in group.items()
    }
