"""From options and a model to the static sizes of a build, checked against the memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ranvier.build.buckets import resolve_ragged
from ranvier.build.pack import weight_shapes
from ranvier.build.programs import Sizes, cache_shapes
from ranvier.cli.neuron import bucket_request
from ranvier.cli.settings import DTYPES, Options, bucket_lists, say
from ranvier.core.buckets import BucketLimits
from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS
from ranvier.models.spec import DecoderSpec
from ranvier.native import library
from ranvier.nn.kernels.linear.pack import DTYPES as ARRAY_DTYPES
from ranvier.targets.host_memory import (
    HostMemory,
    MemoryNeed,
    check_fit,
    default_blocks,
    host_memory,
    largest_len,
    share_blocks,
)

__all__ = ["Plan", "plan_sizes"]

LENGTH_DEFAULT = 4096
BATCHED_DEFAULT = 1024
SHARE_DEFAULT = 0.9
"""Of all memory: what max_model_len=auto may fill."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a build and what they take."""

    spec: DecoderSpec
    sizes: Sizes
    need: MemoryNeed
    memory: HostMemory


def plan_sizes(options: Options, spec: DecoderSpec) -> Plan:
    """Sizes that fit. Raises ConfigError, and TargetError naming the largest sizes that do fit."""
    memory = host_memory()
    share = options.gpu_memory_utilization
    bound = int((share or SHARE_DEFAULT) * memory.total_bytes)
    sizes = _sizes(options, spec)
    need = _need(spec, sizes)
    if options.max_model_len == -1:
        length = largest_len(need, bound)
        if length == 0:
            check_fit(need, bound, "the share of memory for it")
        sizes = replace(sizes, **_lengths(length, options))
        say(f"max_model_len is {length}, of the model's {spec.model_len_max}")
        need = _need(spec, sizes)
    sizes = replace(sizes, block_count=_blocks(options, need, bound))
    need = replace(need, block_count=sizes.block_count)
    if share is not None:
        check_fit(need, bound, f"gpu_memory_utilization={share} of the memory")
    check_fit(need, memory.available_bytes, "the memory that is available")
    return Plan(spec, sizes, need, memory)


def _sizes(options: Options, spec: DecoderSpec) -> Sizes:
    """Sizes with the default KV cache."""
    length = options.max_model_len or min(spec.model_len_max, LENGTH_DEFAULT)
    if length == -1:
        length = spec.model_len_max
    if length > spec.model_len_max:
        raise ConfigError(
            f"max_model_len={length} is above the model's own {spec.model_len_max}.",
            hint="Lower --max-model-len; or, where the model can do it, raise its own with "
            "--hf-overrides.max_position_embeddings.",
        )
    kernels = _kernels()
    return Sizes(
        dtype=_dtype(options.dtype, kernels),
        kernels=kernels,
        max_num_seqs=options.max_num_seqs,
        block_tokens=options.block_size,
        token_buckets=_buckets(options, length),
        logprobs_max=LIMITS.logprobs_max,
        **_lengths(length, options),
    )


def _buckets(options: Options, length: int) -> tuple[int, ...]:
    """The buckets that were asked for, or automatic ones."""
    request = bucket_request(
        options.additional_config, options.override_neuron_config, bucket_lists()
    )
    listed = request.prefill_tokens
    largest = listed.sizes[-1] if listed else BATCHED_DEFAULT
    limits = BucketLimits(
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or max(largest, options.max_num_seqs),
        block_tokens=options.block_size,
    )
    found = resolve_ragged(request, limits)
    for line in found.notices:
        say(line)
    return found.buckets.tokens


def _lengths(length: int, options: Options) -> dict[str, Any]:
    """What follows from max_model_len."""
    return {
        "max_model_len": length,
        "edits_max": length + LIMITS.logit_bias_max,
        "block_count": default_blocks(length, options.max_num_seqs, options.block_size),
    }


def _blocks(options: Options, need: MemoryNeed, bound: int) -> int:
    """Blocks of the cache, the garbage block among them. Raises ConfigError."""
    whole = -(-need.max_model_len // need.block_tokens)
    if options.num_gpu_blocks_override:
        blocks, flag = options.num_gpu_blocks_override + 1, "--num-gpu-blocks-override"
    elif options.kv_cache_memory_bytes:
        blocks = options.kv_cache_memory_bytes // need.block_bytes
        flag = "--kv-cache-memory-bytes"
    elif options.gpu_memory_utilization:
        blocks, flag = share_blocks(need, bound), "--gpu-memory-utilization"
    else:
        return need.block_count
    if blocks < whole + 1:
        raise ConfigError(
            f"{max(blocks - 1, 0)} KV blocks hold {max(blocks - 1, 0) * need.block_tokens} tokens: "
            f"not one sequence of max_model_len={need.max_model_len} ({whole} blocks).",
            hint=f"Raise {flag} (a block is {need.block_bytes} bytes, one more is kept free) or "
            "lower --max-model-len.",
        )
    return blocks


def _need(spec: DecoderSpec, sizes: Sizes) -> MemoryNeed:
    shapes = weight_shapes(spec, sizes.dtype, sizes.kernels).values()
    cache = cache_shapes(spec, replace(sizes, block_count=1))
    item = np.dtype(ARRAY_DTYPES[sizes.dtype]).itemsize
    return MemoryNeed(
        weights_bytes=sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes),
        block_bytes=(math.prod(cache.k) + math.prod(cache.v)) * item,
        block_tokens=sizes.block_tokens,
        block_count=sizes.block_count,
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        program_bytes=_program_bytes(spec, sizes),
    )


def _program_bytes(spec: DecoderSpec, sizes: Sizes) -> int:
    """Activations of the largest step (f32, two generations alive) and its logits and edits."""
    tokens, rows = sizes.token_buckets[-1], sizes.max_num_seqs
    wide = 2 * spec.hidden + spec.qkv_size + spec.heads * spec.head_size + 2 * spec.intermediate
    per_row = 2 * spec.vocab_size + 3 * sizes.edits_max
    return 4 * (2 * tokens * wide + rows * per_row)


def _kernels() -> str:
    """The kernels that this machine can run; says so when they are the slow ones."""
    if library.register():
        return "cpu"
    say("the CPU kernels are not built (no C++ compiler at install): plain JAX kernels, slower")
    return "reference"


def _dtype(named: str, kernels: str) -> str:
    """auto is bfloat16, but float32 on the plain kernels: XLA is slow in bfloat16 on a CPU."""
    if named == "auto":
        return "bfloat16" if kernels == "cpu" else "float32"
    return DTYPES[named]
