"""DecoderSpec and ArraySpec: a model as data, before any array exists.

One abstract weight tree per model drives packing, lowering and memory planning. No array of weights
is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ranvier.nn.vision.encoder import Encoder

__all__ = ["ArraySpec", "DecoderSpec", "RopeSpec", "VisionSpec"]


@dataclass(frozen=True)
class RopeSpec:
    """One rotary embedding: its inverse frequencies [E/2] (scaling applied) and output scale."""

    inv_freq: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class ArraySpec:
    """One packed weight: logical kind, and where it comes from in the checkpoint.

    kind "linear": logical [L, O, I], packed by the target; "gated": gate and up, each [L, O/2, I];
    "plain": f32 [L, ...] as it is. `sources` holds, per layer, the checkpoint names that are
    concatenated along O (gated: gate, up). `offset` is added to plain values (Gemma's 1 + w).
    `shape` is the logical shape with the layer axis first.
    """

    name: str
    kind: Literal["linear", "gated", "plain"]
    shape: tuple[int, ...]
    sources: tuple[tuple[str, ...], ...]
    offset: float = 0.0
    is_transposed: bool = False
    """The checkpoint holds a linear as [I, O]."""


@dataclass(frozen=True)
class VisionSpec:
    """The encoder of a model that sees pictures; its arrays are named `vision.*`.

    `units` are the buckets that make sense for the family, in patches or tiles, ascending.
    `constants` are arrays that come from the config. `preparation` tells the runtime how to lay a
    picture out for the encoder (runtime/pictures.py).
    """

    family: str
    unit: Literal["patches", "tiles"]
    units: tuple[int, ...]
    encoder: Encoder
    arrays: tuple[ArraySpec, ...]
    preparation: Mapping[str, Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    is_whole: bool = False
    cross_before: tuple[int, ...] = ()
    """Self-attention layers of the text side; before each is one that attends to tiles."""
    cross_keys: int = 0
    """Keys of a tile."""


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer of the Llama family and its relatives.

    `windows` and `ropes_of_layer` have one entry per layer: window 0 attends to everything, else to
    the last `window` positions, the own one included.
    """

    family: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    norm_eps: float
    activation: Literal["silu", "gelu_tanh"]
    model_len_max: int
    ropes: tuple[RopeSpec, ...]
    ropes_of_layer: tuple[int, ...]
    windows: tuple[int, ...]
    attention_scale: float
    embed_scale: float = 1.0
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    has_post_norms: bool = False
    is_tied: bool = True
    arrays: tuple[ArraySpec, ...] = field(default=())
    end_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    vision: VisionSpec | None = None
    rope_axes: tuple[int, ...] = ()
    """The axis (frame, row, column) that turns each frequency [E/2]; empty: one position for all"""
    embed_extra: int = 0
    """Rows of the embedding that the head has not: ids that are never drawn."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """(prefix in some checkpoints, prefix in `sources`) for names that were changed."""

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def embed_rows(self) -> int:
        return self.vocab_size + self.embed_extra

    @property
    def cross_before(self) -> tuple[int, ...]:
        return self.vision.cross_before if self.vision else ()

    def array(self, name: str) -> ArraySpec:
        return next(a for a in self.arrays if a.name == name)
