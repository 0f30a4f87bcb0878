"""From options and a model to the target and the static sizes of a build that fit in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ranvier.build.buckets import resolve_ragged, resolve_unragged
from ranvier.build.drafting import Source
from ranvier.build.lora.form import adapter_form
from ranvier.build.pack import weight_shapes
from ranvier.build.programs import Sizes, cache_shapes
from ranvier.build.shard.rank import rank_spec
from ranvier.build.vision.encoders import vision_state
from ranvier.cli.drafting import Drafting, with_drafts
from ranvier.cli.neuron import bucket_request
from ranvier.cli.options.adapters import adapter_sizes
from ranvier.cli.options.settings import (
    DTYPES,
    KV_CACHE_DTYPES,
    Options,
    bucket_lists,
    kv_layout,
    logical_nc_config,
    say,
)
from ranvier.cli.options.speculative import read_speculative
from ranvier.cli.parallel import check_features, check_parallel
from ranvier.cli.pictures import of_pictures, vision_of
from ranvier.cli.quantisation import DENSE, quantisation_of, stored_bytes
from ranvier.core.buckets import BucketLimits, BucketSet
from ranvier.core.errors import ConfigError, TargetError
from ranvier.core.limits import LIMITS
from ranvier.core.program import program_shapes
from ranvier.models.spec import DecoderSpec
from ranvier.native import library
from ranvier.targets.host_memory import (
    HostMemory,
    MemoryNeed,
    check_fit,
    default_blocks,
    host_memory,
    largest_len,
    share_blocks,
)
from ranvier.targets.neuron.instances import CHIPS
from ranvier.targets.table import DEVICES, TARGETS, Target, find_target
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.lora.form import stack_bytes

__all__ = ["Plan", "choose_target", "plan_sizes"]

LENGTH_DEFAULT = 4096
BATCHED_DEFAULT = 1024
REGION_GRANULE = 32
FP8_SMALL_MAX = 240.0
SHARE_DEFAULT = 0.9
"""Of all memory: what max_model_len=auto may fill."""


@dataclass(frozen=True)
class Plan:
    """The target and the sizes of a build, and what they take."""

    spec: DecoderSpec
    target: Target
    sizes: Sizes
    need: MemoryNeed
    memory: HostMemory
    drafting: Drafting | None = None

    def source(self, checkpoint: Checkpoint) -> Source:
        """What the build reads of the model's files and its drafter's."""
        draft = None if self.drafting is None else self.drafting.checkpoint
        return Source(checkpoint, self.spec, draft)


def plan_sizes(
    options: Options,
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    drafting: Drafting | None = None,
) -> Plan:
    """Sizes that fit. Raises ConfigError, and TargetError naming the largest sizes that do fit.

    The memory of a target that is not this host is its own; it is not looked at here.
    """
    spec = of_pictures(options, spec, checkpoint)
    target, memory = choose_target(options), host_memory()
    check_parallel(options, spec, target)
    share = options.gpu_memory_utilization
    bound = int((share or SHARE_DEFAULT) * memory.total_bytes)
    sizes = _sizes(options, _length(options, spec), target)
    quantization = quantisation_of(options, checkpoint, sizes.dtype)
    stored = stored_bytes(checkpoint) if quantization != DENSE and sizes.kernels == "cpu" else None
    sizes = _of_model(options, sizes, spec, quantization, drafting)
    check_features(sizes)
    need = _need(spec, sizes, stored, drafting)
    if target.platform != "cpu":
        if share is not None:
            say(f"gpu_memory_utilization={share} has no effect on the target {target.name} yet")
        sizes = replace(sizes, block_count=_blocks(options, sizes, need, None))
        return Plan(spec, target, sizes, need, memory, drafting)
    if options.max_model_len == -1:
        length = largest_len(need, bound)
        if length == 0:
            check_fit(need, bound, "the share of memory for it")
        sizes = _of_model(options, _sizes(options, length, target), spec, quantization, drafting)
        say(f"max_model_len is {length}, of the model's {spec.model_len_max}")
        need = _need(spec, sizes, stored, drafting)
    sizes = replace(sizes, block_count=_blocks(options, sizes, need, bound))
    need = replace(need, block_count=sizes.block_count)
    if share is not None:
        check_fit(need, bound, f"gpu_memory_utilization={share} of the memory")
    check_fit(need, memory.available_bytes, "the memory that is available")
    return Plan(spec, target, sizes, need, memory, drafting)


def _of_model(
    options: Options,
    sizes: Sizes,
    spec: DecoderSpec,
    quantization: str,
    drafting: Drafting | None,
) -> Sizes:
    """The sizes with what the files of the model and of its drafter decide."""
    vision = vision_of(options, spec, sizes.max_model_len)
    sizes = replace(sizes, quantization=quantization, vision=vision)
    if drafting is None:
        return sizes
    if vision is not None:
        raise ConfigError(
            "speculative_config: a model that sees pictures has no drafter on the device yet.",
            hint="The method ngram guesses on the host and works with it.",
        )
    kept = drafting.quantization(sizes.dtype)
    return replace(sizes, draft=drafting.spec, draft_quantization=kept)


def choose_target(options: Options) -> Target:
    """--target by name, else by --device; auto takes the best device of this machine."""
    if options.target is not None:
        target = find_target(options.target)
        if options.device not in ("auto", target.platform):
            raise ConfigError(
                f"--target {target.name} is no target of --device {options.device}.",
                hint="Give one of the two.",
            )
        return target
    if options.device not in DEVICES:
        raise ConfigError(f"device is {options.device!r}; supported: {', '.join(DEVICES)}.")
    if options.device in ("cpu", "cuda"):
        return TARGETS[options.device]
    from ranvier.runtime.device import local_target

    found = local_target()
    if options.device == "neuron" and not found.is_neuron:
        raise TargetError(
            "No Neuron device is here, so that its generation is not known.",
            hint="To compile for one, name it: --target neuron-trn2.",
        )
    return found


def _sizes(options: Options, length: int, target: Target) -> Sizes:
    """Sizes with the default KV cache."""
    is_ragged = _is_ragged(options, target)
    kernels = _kernels(target, is_ragged)
    is_contiguous = kv_layout(options) == "contiguous"
    if is_contiguous and is_ragged:
        raise ConfigError(
            "program_family=ragged: its programs have no contiguous KV layout.",
            hint="Leave --program-family at auto, or --kv-layout at block.",
        )
    # A region is one block that holds a whole sequence; contexts within it may be shorter.
    granule = REGION_GRANULE if is_contiguous else options.block_size
    buckets = _buckets(options, length, granule, is_ragged)
    block_tokens = buckets.contexts[-1] if is_contiguous else options.block_size
    rows = options.max_num_seqs
    dtype = _dtype(options.dtype, kernels, target)
    return Sizes(
        dtype=dtype,
        kernels=kernels,
        max_model_len=length,
        max_num_seqs=rows,
        block_tokens=block_tokens,
        block_count=rows + 1 if is_contiguous else default_blocks(length, rows, block_tokens),
        kv_layout="contiguous" if is_contiguous else "block",
        buckets=buckets,
        kv_cache_dtype=_kv_cache_dtype(options.kv_cache_dtype, dtype, target),
        tensor_parallel=options.tensor_parallel_size,
        pipeline_parallel=options.pipeline_parallel_size,
        sequence_parallel=options.sequence_parallel,
        logical_cores=_logical_cores(options, target),
        logprobs_max=LIMITS.logprobs_max,
        edits_max=length + LIMITS.logit_bias_max,
        **adapter_sizes(options),
    )


def _logical_cores(options: Options, target: Target) -> int:
    """Physical cores of a logical one: named, else the target's default. Raises ConfigError."""
    named = options.logical_nc_config
    if not target.is_neuron:
        if named is not None:
            raise ConfigError(f"logical_nc_config={named} is for Neuron; this is {target.name}.")
        return 1
    cores = logical_nc_config(options) or target.logical_cores[0]
    if cores not in target.logical_cores:
        legal = " or ".join(map(str, sorted(target.logical_cores)))
        raise ConfigError(
            f"logical_nc_config={cores}: {target.name} has logical cores of {legal} physical ones.",
            hint="Leave out --logical-nc-config and NEURON_LOGICAL_NC_CONFIG, or give that.",
        )
    return cores


def _length(options: Options, spec: DecoderSpec) -> int:
    length = options.max_model_len or min(spec.model_len_max, LENGTH_DEFAULT)
    if length == -1:
        return spec.model_len_max
    if length > spec.model_len_max:
        raise ConfigError(
            f"max_model_len={length} is above the model's own {spec.model_len_max}.",
            hint="Lower --max-model-len; or, where the model can do it, raise its own with "
            "--hf-overrides.max_position_embeddings.",
        )
    return length


def _is_ragged(options: Options, target: Target) -> bool:
    if options.program_family == "auto":
        return target.is_ragged and kv_layout(options) == "block"
    if options.program_family == "ragged" and not target.is_ragged:
        raise ConfigError(
            f"program_family=ragged: {target.name} has no ragged attention kernel.",
            hint="Leave --program-family at auto.",
        )
    return options.program_family == "ragged"


def _buckets(options: Options, length: int, block_tokens: int, is_ragged: bool) -> BucketSet:
    """The buckets that were asked for, or automatic ones."""
    request = bucket_request(
        options.additional_config, options.override_neuron_config, bucket_lists()
    )
    asked = read_speculative(options.speculative_config)
    listed = request.prefill_tokens
    largest = listed.sizes[-1] if listed else BATCHED_DEFAULT
    limits = BucketLimits(
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or max(largest, options.max_num_seqs),
        block_tokens=block_tokens,
        lookahead=asked.count if asked else 0,
    )
    found = (resolve_ragged if is_ragged else resolve_unragged)(request, limits)
    for line in found.notices:
        say(line)
    return with_drafts(found.buckets, asked)


def _blocks(options: Options, sizes: Sizes, need: MemoryNeed, bound: int | None) -> int:
    """Blocks of the cache, the garbage block among them. Raises ConfigError."""
    if sizes.kv_layout == "contiguous":
        named = options.num_gpu_blocks_override
        if named not in (None, sizes.max_num_seqs):
            say(
                f"num_gpu_blocks_override={named} has no effect: the contiguous layout has one "
                f"region a sequence, {sizes.max_num_seqs}"
            )
        return need.block_count
    whole = -(-need.max_model_len // need.block_tokens)
    if options.num_gpu_blocks_override:
        blocks, flag = options.num_gpu_blocks_override + 1, "--num-gpu-blocks-override"
    elif options.kv_cache_memory_bytes:
        blocks = options.kv_cache_memory_bytes // need.block_bytes
        flag = "--kv-cache-memory-bytes"
    elif options.gpu_memory_utilization and bound is not None:
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


def _need(
    spec: DecoderSpec, sizes: Sizes, stored: int | None, drafting: Drafting | None
) -> MemoryNeed:
    """What a build takes; `stored`: bytes of the checkpoint, where its weights grow no further."""
    weights, block = _model_bytes(spec, sizes, stored)
    if drafting is not None:
        is_packed = sizes.draft_quantization != DENSE and sizes.kernels == "cpu"
        own = stored_bytes(drafting.checkpoint) if is_packed else None
        more = _model_bytes(drafting.spec.spec, sizes, own)
        weights, block = weights + more[0], block + more[1]
    form = adapter_form(spec, sizes)
    return MemoryNeed(
        weights_bytes=weights,
        adapter_bytes=0 if form is None else stack_bytes(form) * sizes.parallel.ranks,
        block_bytes=block,
        block_tokens=sizes.block_tokens,
        block_count=sizes.block_count,
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        program_bytes=_program_bytes(spec, sizes) * sizes.parallel.ranks,
    )


def _model_bytes(spec: DecoderSpec, sizes: Sizes, stored: int | None) -> tuple[int, int]:
    """Of the weights and of one block of the caches, of all ranks."""
    parallel = sizes.parallel
    shapes = weight_shapes(spec, sizes.dtype, sizes.kernels, parallel).values()
    dense = parallel.ranks * sum(math.prod(s) * np.dtype(kind).itemsize for s, kind in shapes)
    cache = cache_shapes(rank_spec(spec, parallel), replace(sizes, block_count=1))
    block = parallel.ranks * (math.prod(cache.k) + math.prod(cache.v)) * cache.dtype.itemsize
    return dense if stored is None else min(dense, stored), block


def _program_bytes(spec: DecoderSpec, sizes: Sizes) -> int:
    """Activations of the largest step (f32, two generations alive) and its logits and edits."""
    shapes = program_shapes(sizes.buckets, sizes.max_num_seqs)
    tokens, rows = max(shape.tokens for shape in shapes), max(shape.samples for shape in shapes)
    wide = 2 * spec.hidden + spec.qkv_size + spec.heads * spec.head_size + 2 * spec.intermediate
    per_row = 2 * spec.vocab_size + 3 * sizes.edits_max
    pictures = sum(math.prod(s) for s, _ in vision_state(spec, sizes.vision, sizes.dtype).values())
    return 4 * (2 * tokens * wide + rows * per_row + pictures)


def _kernels(target: Target, is_ragged: bool) -> str:
    """The functions that programs are made of; says so when a CPU gets the slow ones."""
    if target.kernels != "cpu" or not is_ragged:
        return "reference"
    if library.register():
        return "cpu"
    say("the CPU kernels are not built (no C++ compiler at install): plain JAX kernels, slower")
    return "reference"


def _dtype(named: str, kernels: str, target: Target) -> str:
    """auto is bfloat16, but float32 on a CPU's plain kernels: XLA is slow in bfloat16 there."""
    if named == "auto":
        is_slow = target.name == "cpu" and kernels == "reference"
        return "float32" if is_slow else "bfloat16"
    return DTYPES[named]


def _kv_cache_dtype(named: str, dtype: str, target: Target) -> str:
    """auto where the cache is as wide as the activations, else fp8, int8 or, where e4m3 ends at
    240, fp8-240. Raises ConfigError."""
    kind = KV_CACHE_DTYPES[named]
    if kind in ("auto", dtype):
        return "auto"
    if kind in ("bfloat16", "float32"):
        raise ConfigError(
            f"kv_cache_dtype={named} with dtype {dtype}: the cache has the dtype of the "
            "activations, or is fp8 or int8.",
            hint=f"Leave --kv-cache-dtype out, or add --dtype {kind}.",
        )
    if not target.is_neuron:
        return kind
    fp8_max = CHIPS[target.name].fp8_max
    if kind == "fp8" and fp8_max is not None:
        return "fp8" if fp8_max > FP8_SMALL_MAX else "fp8-240"
    raise ConfigError(
        f"kv_cache_dtype={named}: {target.name} has no cache of it.",
        hint="fp8 is there on neuron-trn2 and neuron-trn3; else leave --kv-cache-dtype out.",
    )
