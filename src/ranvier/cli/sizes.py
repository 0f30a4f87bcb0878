"""From options to the target and the static sizes of a build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranvier.cli.settings import DTYPES, Options
from ranvier.core.buckets import BucketLimits, BucketSet
from ranvier.core.errors import ConfigError, TargetError
from ranvier.core.limits import LIMITS
from ranvier.targets.table import DEVICES, TARGETS, Target, find_target

__all__ = ["choose_target", "resolve_sizes"]

LENGTH_DEFAULT = 4096
BATCHED_DEFAULT = 1024
Notice = Callable[[str], None]


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


def resolve_sizes(options: Options, model_len_max: int, target: Target, notice: Notice) -> Any:
    """build.programs.Sizes: every static size, None replaced by what fits. Raises ConfigError."""
    from ranvier.build.programs import Sizes

    length = _length(options, model_len_max)
    is_ragged = _is_ragged(options, target)
    kernels = _kernels(target, is_ragged, notice)
    is_contiguous = options.kv_layout == "contiguous"
    if is_contiguous and is_ragged:
        raise ConfigError(
            "program_family=ragged: its programs have no contiguous KV layout.",
            hint="Leave --program-family at auto, or --kv-layout at block.",
        )
    # A region is one block that holds a whole sequence.
    block_tokens = -(-length // 32) * 32 if is_contiguous else options.block_size
    buckets = _buckets(options, length, block_tokens, is_ragged)
    block_tokens = buckets.contexts[-1] if is_contiguous else block_tokens
    return Sizes(
        dtype=_dtype(options.dtype, kernels, target),
        kernels=kernels,
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        block_tokens=block_tokens,
        block_count=_blocks(options, length, is_contiguous, notice) + 1,
        kv_layout="contiguous" if is_contiguous else "block",
        buckets=buckets,
        logprobs_max=LIMITS.logprobs_max,
        edits_max=length + LIMITS.logit_bias_max,
    )


def _length(options: Options, model_len_max: int) -> int:
    length = options.max_model_len or min(model_len_max, LENGTH_DEFAULT)
    if length > model_len_max:
        raise ConfigError(
            f"max_model_len={length} is above the model's own {model_len_max}.",
            hint="Lower --max-model-len.",
        )
    return length


def _is_ragged(options: Options, target: Target) -> bool:
    if options.program_family == "auto":
        return target.is_ragged and options.kv_layout == "block"
    if options.program_family == "ragged" and not target.is_ragged:
        raise ConfigError(
            f"program_family=ragged: {target.name} has no ragged attention kernel.",
            hint="Leave --program-family at auto.",
        )
    return options.program_family == "ragged"


def _buckets(options: Options, length: int, block_tokens: int, is_ragged: bool) -> BucketSet:
    from ranvier.build.buckets import token_buckets
    from ranvier.build.traffic import automatic_unragged

    batched = options.max_num_batched_tokens or max(BATCHED_DEFAULT, options.max_num_seqs)
    if is_ragged:
        return BucketSet(tokens=token_buckets(options.max_num_seqs, batched))
    limits = BucketLimits(
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=batched,
        block_tokens=block_tokens,
    )
    return automatic_unragged(limits).buckets


def _blocks(options: Options, length: int, is_contiguous: bool, notice: Notice) -> int:
    """Blocks that sequences can own; the garbage block comes on top."""
    named = options.num_gpu_blocks_override
    if is_contiguous:
        if named not in (None, options.max_num_seqs):
            notice(
                f"num_gpu_blocks_override={named} has no effect: the contiguous layout has one "
                f"region a sequence, {options.max_num_seqs}"
            )
        return options.max_num_seqs
    per_sequence = -(-length // options.block_size)
    half = -(-per_sequence * options.max_num_seqs // 2)
    return named or max(half, per_sequence)


def _kernels(target: Target, is_ragged: bool, notice: Notice) -> str:
    """The functions that programs are made of; says so when a CPU gets the slow ones."""
    if target.kernels != "cpu" or not is_ragged:
        return "reference"
    from ranvier.native import library

    if library.register():
        return "cpu"
    notice("the CPU kernels are not built (no C++ compiler at install): plain JAX kernels, slower")
    return "reference"


def _dtype(named: str, kernels: str, target: Target) -> str:
    """auto is bfloat16, but float32 on a CPU's plain kernels: XLA is slow in bfloat16 there."""
    if named == "auto":
        is_slow = target.name == "cpu" and kernels == "reference"
        return "float32" if is_slow else "bfloat16"
    return DTYPES[named]
