"""The program table: names, functions and abstract arguments of everything that is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.build.pack import weight_shapes
from ranvier.core.layout import MetaLayout
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
    token_buckets: tuple[int, ...]
    logprobs_max: int
    edits_max: int

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.max_model_len // self.block_tokens)

    def layout(self, tokens: int) -> MetaLayout:
        rows = min(tokens, self.max_num_seqs)
        return MetaLayout(tokens=tokens, rows=rows, blocks=self.blocks_per_sequence)


@dataclass(frozen=True)
class Program:
    """One function for one bucket."""

    name: str
    tokens: int
    rows: int
    function: Any
    arguments: tuple[Any, ...]

    def lower(self) -> Any:
        """Trace and lower; the state (argument 1) is donated, unused arguments are kept."""
        return jax.jit(self.function, donate_argnums=1, keep_unused=True).lower(*self.arguments)


def cache_shapes(spec: DecoderSpec, sizes: Sizes) -> CacheShapes:
    """Shapes of the whole k and v caches."""
    heads = AttentionSpec(
        spec.heads, spec.kv_heads, spec.head_size, spec.attention_scale, spec.norm_eps
    )
    blocks, tokens = sizes.block_count, sizes.block_tokens
    return select(sizes.kernels).cache_shapes(spec.layers, heads, blocks, tokens, sizes.dtype)


def programs(spec: DecoderSpec, sizes: Sizes) -> list[Program]:
    """One step program per token bucket."""
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
    for tokens in sizes.token_buckets:
        layout = sizes.layout(tokens)
        inputs = {
            "meta": struct((layout.size,), jnp.int32),
            "edits": struct((layout.rows, sizes.edits_max, 3), jnp.int32),
            "allowed": struct((layout.rows, -(-spec.vocab_size // 32)), jnp.int32),
        }
        step = Decoder(spec, kernels, layout, sizes.logprobs_max).step
        arguments = (weights, state, inputs)
        table.append(Program(f"step.t{tokens}", tokens, layout.rows, step, arguments))
    return table
