"""Linear on the CPU kernels: weights packed as linear/pack.py says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ranvier.nn.kernels.linear import Quantised, Weight
from ranvier.nn.kernels.lora import Lora

__all__ = ["linear"]

GATES = {None: 0, "silu": 1, "gelu_tanh": 2}


def linear(
    x_TI: Array,
    weight: Weight,
    layer: Array,
    count: Array,
    *,
    outputs: int,
    norm: tuple[Array, float] | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    gated: str | None = None,
    out_dtype: Any = jnp.float32,
    lora: Lora | None = None,
) -> Array:
    """As the reference; the first count[0] rows of the result are defined.

    Shapes: weight as linear/pack.py packs it, its outputs padded to 32, or Quantised; result as the
    reference.
    Cost: reads the layer's weight once, and the A and B of each adapter that a row has; nothing is
    copied, and what is quantised stays so.
    """
    none = jnp.zeros((0, 0), jnp.float32)
    width = outputs // 2 if gated else outputs
    dtype = jnp.float32 if residual is not None else out_dtype
    struct: Any = jax.ShapeDtypeStruct
    is_whole = isinstance(weight, Quantised)
    name = "ranvier_quantised" if is_whole else "ranvier_linear"
    call: Any = jax.ffi.ffi_call(name, struct((x_TI.shape[0], width), dtype))
    out: Array = call(
        x_TI,
        *(weight if isinstance(weight, Quantised) else (weight,)),
        layer,
        count,
        none if norm is None else norm[0],
        none if bias is None else bias,
        none if residual is None else residual,
        *_adapters(lora),
        outputs=np.int64(outputs),
        eps=np.float32(0.0 if norm is None else norm[1]),
        gate=np.int64(GATES[gated]),
        parts=np.asarray(_places(lora), np.int64),
    )
    return out


def _adapters(lora: Lora | None) -> tuple[Array, Array, Array]:
    if lora is not None:
        return lora.slots_T, lora.a, lora.b
    none = jnp.zeros((0,), jnp.int32)
    return none, none, none


def _places(lora: Lora | None) -> list[int]:
    """The first part's row of the table, then each part's first output and their number."""
    if lora is None:
        return [0]
    assert [part.index - lora.parts[0].index for part in lora.parts] == list(range(len(lora.parts)))
    ranges = [number for part in lora.parts for number in (part.start, part.outputs)]
    return [lora.parts[0].index, *ranges]
