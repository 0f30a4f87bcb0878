"""A decoder layer in plain numpy, on whole sequences: what calibration and reports run.

Slow and obvious: f32, no cache, no padding. The tests compare it with transformers' logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranvier.models.spec import DecoderSpec
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["LINEARS", "Head", "Linear", "embed", "head", "layer_vectors", "run_layer"]

Floats = NDArray[np.float32]
Linear = Callable[[str, Floats], Floats]
"""(array's name, input [S, T, I]) to output [S, T, O]."""

LINEARS = ("qkv", "o", "gate_up", "down")
"""The arrays of a layer that are matrices, in the order in which they are used."""
TOP = ("embed", "head", "final_norm")


def layer_vectors(checkpoint: Checkpoint, spec: DecoderSpec, layer: int) -> dict[str, Floats]:
    """Norms and biases of a layer by their arrays' names."""
    found = {}
    for array in spec.arrays:
        if array.kind == "plain" and array.name not in TOP:
            parts = [checkpoint.read(name).reshape(-1) for name in array.sources[layer]]
            found[array.name] = np.concatenate(parts).astype(np.float32) + np.float32(array.offset)
    return found


def run_layer(
    x_STD: Floats, spec: DecoderSpec, layer: int, vectors: dict[str, Floats], linear: Linear
) -> Floats:
    """One layer's output from its input, both [S, T, D]."""
    eps = spec.norm_eps
    qkv = linear("qkv", _norm(x_STD, vectors["attn_norm"], eps))
    if spec.has_qkv_bias:
        qkv = qkv + vectors["qkv_bias"]
    out = linear("o", _attend(qkv, spec, layer, vectors))
    if spec.has_post_norms:
        out = _norm(out, vectors["o_norm"], eps)
    x_STD = x_STD + out
    both = linear("gate_up", _norm(x_STD, vectors["mlp_norm"], eps))
    gate, up = np.split(both, 2, -1)
    out = linear("down", _activate(gate, spec.activation) * up)
    if spec.has_post_norms:
        out = _norm(out, vectors["down_norm"], eps)
    return x_STD + out


def embed(checkpoint: Checkpoint, spec: DecoderSpec, ids_ST: NDArray[np.int64]) -> Floats:
    """Embeddings [S, T, D] of token ids."""
    table = checkpoint.read(spec.array("embed").sources[0][0])
    return table[ids_ST].astype(np.float32) * np.float32(spec.embed_scale)


@dataclass(frozen=True)
class Head:
    """The last norm and the matrix that gives logits."""

    norm: Floats
    matrix: Floats
    eps: float

    def logits(self, x_TD: Floats) -> Floats:
        return _norm(x_TD, self.norm, self.eps) @ self.matrix.T


def head(checkpoint: Checkpoint, spec: DecoderSpec) -> Head:
    norm = spec.array("final_norm")
    name = spec.array("embed" if spec.is_tied else "head").sources[0][0]
    values = checkpoint.read(norm.sources[0][0]).astype(np.float32) + np.float32(norm.offset)
    return Head(values, checkpoint.read(name).astype(np.float32), spec.norm_eps)


def _norm(x: Floats, weight: Floats, eps: float) -> Floats:
    size = np.mean(np.square(x), -1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(size + np.float32(eps)) * weight, np.float32)


def _activate(x: Floats, kind: str) -> Floats:
    with np.errstate(over="ignore"):
        if kind == "silu":
            return np.asarray(x / (1 + np.exp(-x)), np.float32)
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), np.float32)


def _attend(qkv_STO: Floats, spec: DecoderSpec, layer: int, vectors: dict[str, Floats]) -> Floats:
    """Causal attention of each sequence on itself; output [S, T, H * E]."""
    heads, kv_heads, size = spec.heads, spec.kv_heads, spec.head_size
    sequences, tokens, _ = qkv_STO.shape
    parts = qkv_STO.reshape(sequences, tokens, heads + 2 * kv_heads, size)
    q, k, v = np.split(parts, [heads, heads + kv_heads], 2)
    if spec.has_qk_norm:
        q = _norm(q, vectors["q_norm"], spec.norm_eps)
        k = _norm(k, vectors["k_norm"], spec.norm_eps)
    q, k = _rotate(q, spec, layer), _rotate(k, spec, layer)
    places = np.arange(tokens)
    ago = places[:, None] - places
    window = spec.windows[layer]
    hidden = (ago < 0) | ((ago >= window) if window else False)
    out = np.empty((sequences, tokens, heads, size), np.float32)
    for s in range(sequences):
        for h in range(heads):
            kv = h * kv_heads // heads
            scores = q[s, :, h] @ k[s, :, kv].T * np.float32(spec.attention_scale)
            scores[hidden] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[s, :, h] = scores / scores.sum(-1, keepdims=True) @ v[s, :, kv]
    return out.reshape(sequences, tokens, heads * size)


def _rotate(x_STHE: Floats, spec: DecoderSpec, layer: int) -> Floats:
    rope = spec.ropes[spec.ropes_of_layer[layer]]
    angles = np.arange(x_STHE.shape[1])[:, None] * np.asarray(rope.inv_freq)
    cos, sin = (rope.scale * f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    first, second = np.split(x_STHE, 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
