"""What adapters add to a linear, in plain JAX: all slots at once, masked by row.

Two products over slots x ranks, without a gather of weights by row: legal on Neuron.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ranvier.nn.kernels.lora import Lora

__all__ = ["delta"]


def delta(x_TI: Array, lora: Lora, layer: Array, outputs: int) -> Array:
    """B (A x) of every row's own adapter, f32 [T, outputs]. x: normed, in the weights' dtype.

    Cost: reads every slot of the layer; T x slots x rank x (I + O) products.
    """
    a_SIK = lax.dynamic_index_in_dim(lora.a, layer[0], 1, keepdims=False)
    b_SRO = lax.dynamic_index_in_dim(lora.b, layer[0], 1, keepdims=False)
    slots, rank, kind = b_SRO.shape[0], b_SRO.shape[1], a_SIK.dtype
    places_S = jnp.arange(1, slots + 1, dtype=jnp.int32)
    is_own_TS = lora.slots_T[:, None] == places_S[None, :]
    h_TSK = lax.dot_general(
        x_TI, a_SIK, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    h_TSK = jnp.where(is_own_TS[:, :, None], h_TSK, 0.0).astype(kind)
    columns, done, out = [], 0, 0
    for i, part in enumerate(lora.parts):
        if part.start > out:
            columns.append(jnp.zeros((x_TI.shape[0], part.start - out), jnp.float32))
        h_TSR = h_TSK[:, :, i * rank : (i + 1) * rank]
        b_SRP = b_SRO[:, :, done : done + part.outputs]
        dims = (((1, 2), (0, 1)), ((), ()))
        columns.append(lax.dot_general(h_TSR, b_SRP, dims, preferred_element_type=jnp.float32))
        done, out = done + part.outputs, part.start + part.outputs
    if out < outputs:
        columns.append(jnp.zeros((x_TI.shape[0], outputs - out), jnp.float32))
    return jnp.concatenate(columns, axis=1)
