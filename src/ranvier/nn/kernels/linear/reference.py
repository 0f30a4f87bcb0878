"""Linear and gated linear in plain JAX, on weights [L, I, O].

The slow twin that every fast kernel is compared with; runs on any PJRT plugin.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ranvier.nn.kernels.lora import Lora
from ranvier.nn.kernels.lora.reference import delta
from ranvier.nn.kernels.norm.reference import normalise

__all__ = ["linear"]


def linear(
    x_TI: Array,
    weight: Array,
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
    """Multiply rows by `weight[layer]`, with the steps around it fused by XLA.

    Shapes: x [T, I], weight [L, I, O]; result [T, outputs], or half of it when gated;
    outputs = O. `norm` is (w [L, I] f32, eps); `bias` [L, O] f32; `residual` [T, O] f32, then the
    result is f32. What adapters add comes before the activation.
    """
    del count
    assert outputs == weight.shape[2], f"{outputs} outputs of {weight.shape}"
    x_TI = x_TI.astype(jnp.float32)
    if norm is not None:
        x_TI = normalise(x_TI, _row(norm[0], layer), norm[1])
    w_IO = _row(weight, layer)
    x_TI = x_TI.astype(w_IO.dtype)
    y_TO = lax.dot(x_TI, w_IO, preferred_element_type=jnp.float32)
    if lora is not None:
        y_TO = y_TO + delta(x_TI, lora, layer, outputs)
    if bias is not None:
        y_TO = y_TO + _row(bias, layer)[None, :]
    if gated is not None:
        gate_TF, up_TF = jnp.split(y_TO, 2, axis=1)
        y_TO = _activate(gate_TF, gated) * up_TF
    if residual is not None:
        return residual + y_TO
    return y_TO.astype(out_dtype)


def _row(stacked: Array, layer: Array) -> Array:
    row: Array = lax.dynamic_index_in_dim(stacked, layer[0], 0, keepdims=False)
    return row


def _activate(x: Array, kind: str) -> Array:
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=True)
