"""adapter.place: the program that moves one piece of an adapter into a slot."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.weights.lora.form import BLOB, TABLE, AdapterForm, stack_shapes

__all__ = ["place_arguments", "place_piece"]


def place_piece(
    pieces: dict[str, Array], stacks: dict[str, Array], inputs: dict[str, Array]
) -> dict[str, Array]:
    """Put a piece of every stack at (slot, piece) = inputs["at"] int32 [2].

    Takes the place of a step's weights, stacks that of its state: of several ranks each has its
    own, of both.

    Shapes: a stack [S, P, ...] takes a piece [...] of its name. Donates: stacks.
    Cost: writes the pieces; nothing else of a stack is touched.
    """
    at = inputs["at"]
    placed = {}
    for name, stack in stacks.items():
        piece = pieces[name][None, None]
        start = [at[0], at[1], *([jnp.int32(0)] * (stack.ndim - 2))]
        placed[name] = _update(stack, piece, start, is_bits=name == BLOB)
    return placed


def _update(stack: Array, piece: Array, start: list[Array], *, is_bits: bool) -> Array:
    """XLA:CPU would widen a whole stack in bf16 to f32 and back; of bits it writes the piece."""
    kind = stack.dtype
    if is_bits and kind == jnp.bfloat16:
        stack, piece = (lax.bitcast_convert_type(x, jnp.uint16) for x in (stack, piece))
    updated: Array = lax.dynamic_update_slice(stack, piece, start)
    return lax.bitcast_convert_type(updated, kind) if updated.dtype != kind else updated


def place_arguments(form: AdapterForm) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Abstract arguments of place_piece; the table is small and goes over as a whole."""
    struct: Any = jax.ShapeDtypeStruct
    pieces, stacks = {}, {}
    for name, (shape, kind) in stack_shapes(form).items():
        if name != TABLE:
            stacks[name] = struct(shape, jnp.dtype(kind))
            pieces[name] = struct(shape[2:], jnp.dtype(kind))
    return pieces, stacks, {"at": struct((2,), jnp.int32)}
