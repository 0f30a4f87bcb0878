"""The program table: names, functions and abstract arguments of everything that is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.build.pack import weight_shapes
from ranvier.core.buckets import BucketSet
from ranvier.core.program import KvLayout, ProgramShape, program_shapes
from ranvier.models.spec import DecoderSpec
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import CacheShapes, select

__all__ = ["Program", "Sizes", "cache_shapes", "programs"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The static sizes that a build is made for."""

    dtype: str
    kernels: str
    max_model_len: int
    max_num_seqs: int
    block_tokens: int
    block_count: int
    kv_layout: KvLayout
    buckets: BucketSet
    logprobs_max: int
    edits_max: int


@dataclass(frozen=True)
class Program:
    """One function for one bucket."""

    shape: ProgramShape
    function: Any
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        return self.shape.name

    def lower(self, platform: str) -> Any:
        """Trace and lower for a platform, which need not be here.

        The state (argument 1) is donated; unused arguments are kept.
        """
        jitted = jax.jit(self.function, donate_argnums=1, keep_unused=True)
        return jitted.trace(*self.arguments).lower(lowering_platforms=(platform,))


def cache_shapes(spec: DecoderSpec, sizes: Sizes) -> CacheShapes:
    """Shapes of the whole k and v caches."""
    heads = AttentionSpec(
        spec.heads, spec.kv_heads, spec.head_size, spec.attention_scale, spec.norm_eps
    )
    blocks, tokens = sizes.block_count, sizes.block_tokens
    return select(sizes.kernels).cache_shapes(spec.layers, heads, blocks, tokens, sizes.dtype)


def programs(spec: DecoderSpec, sizes: Sizes) -> list[Program]:
    """Every program of the bucket set."""
    struct: Any = jax.ShapeDtypeStruct
    kernels = select(sizes.kernels)
    shapes = weight_shapes(spec, sizes.dtype, sizes.kernels)
    weights = {name: struct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    cache = cache_shapes(spec, sizes)
    kind = DTYPES[sizes.dtype]
    state = {
        "k": struct(cache.k, kind),
        "v": struct(cache.v, kind),
        "sampled": struct((sizes.max_num_seqs,), jnp.int32),
    }
    table = []
    for shape in program_shapes(sizes.buckets, sizes.max_num_seqs):
        layout = shape.layout(sizes.block_tokens, sizes.max_model_len)
        inputs = {
            "meta": struct((layout.size,), jnp.int32),
            "edits": struct((layout.rows, sizes.edits_max, 3), jnp.int32),
            "allowed": struct((layout.rows, -(-spec.vocab_size // 32)), jnp.int32),
        }
        step = Decoder(spec, kernels, layout, sizes.logprobs_max).step
        table.append(Program(shape, step, (weights, state, inputs)))
    return table
