"""Cross-field rules as data: which keys, when they are broken, the limit, what to do.

Source: the checks of NxD Inference 0.9 and of vllm-neuron 0.24, but for those that only its own
kernels need. A rule is looked at when one of its keys is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ranvier.targets.neuron.config.read import Problem
from ranvier.targets.table import TARGETS

__all__ = ["PLUGIN_RULES", "RULES", "Rule", "broken", "effective", "effective_plugin"]

Values = Mapping[str, Any]
UNKNOWN = float("inf")
"""Stands for a limit that the model decides later."""


class Rule(NamedTuple):
    """One rule; `keys[0]` is the key that is wrong when all are given."""

    keys: tuple[str, ...]
    breaks: Callable[[Values], bool]
    limit: str
    fix: str


def effective(given: Values, options: Values) -> dict[str, Any]:
    """Values by name, defaults filled in from the plain options and from each other."""
    batch = given.get("batch_size", options.get("max_num_seqs", UNKNOWN))
    length = given.get("seq_len", options.get("max_model_len", UNKNOWN))
    degrees = {f"{axis}_degree": 1 for axis in ("cp", "mlp_cp", "attention_dp", "pp", "ep")}
    tp = given.get("tp_degree", options.get("tensor_parallel_size", 1))
    values: dict[str, Any] = {
        **degrees,
        "batch_size": batch, "tkg_batch_size": batch, "max_batch_size": batch,
        "seq_len": length, "max_length": length, "n_positions": length,
        "max_context_length": options.get("max_num_batched_tokens", length),
        "torch_dtype": options.get("dtype", "bfloat16"), "cast_type": "config",
        "logical_cores": _logical_cores(given.get("target", options.get("target")) or ""),
        "tp_degree": tp, "ep_dispatch_cc_option": "AR_AG", "speculation_length": 0,
        "medusa_speculation_length": 0,
    }  # fmt: skip
    return {**values, **given}


def _logical_cores(target: str) -> tuple[int, ...]:
    """What a logical core can be, in physical ones; of any target where none is named."""
    found = TARGETS.get(f"neuron-{target.removeprefix('neuron-')}")
    return tuple(sorted(found.logical_cores)) if found else (1, 2)


def effective_plugin(given: Values, options: Values) -> dict[str, Any]:
    """Values of the plug-in's section by name; limits from the plain options."""
    limits = {
        name: options.get(name, UNKNOWN)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
    }
    return {"block_size": options.get("block_size", 32), **limits, **given}


def broken(rules: tuple[Rule, ...], given: Values, values: Values, path: str) -> list[Problem]:
    """The problems of every broken rule, in the order of the table."""
    problems = []
    for rule in rules:
        named = [key for key in rule.keys if key in given]
        if named and rule.breaks(values):
            key = named[0]
            limit = rule.limit.format_map(values)
            problems.append(Problem(f"{path}.{key}", given[key], limit, rule.fix))
    return problems


def _on(v: Values, *keys: str) -> bool:
    return any(v.get(key) for key in keys)


def _speculates(v: Values) -> bool:
    keys = ("speculation_length", "enable_eagle_speculation", "is_medusa", "token_tree_config")
    return _on(v, *keys)


def _largest(v: Values, key: str) -> float:
    sizes: list[int] = v.get(key) or [0]
    return max(sizes)


def _cores_rule(name: str) -> Rule:
    return Rule(
        (name, "target"),
        lambda v: name in v and v[name] not in v["logical_cores"],
        "the target's logical cores are of {logical_cores} physical ones.",
        f"Leave out {name}, or give one of them.",
    )


QKV = ("qkv_kernel_enabled", "qkv_nki_kernel_enabled")
MLP = ("mlp_kernel_enabled", "quantized_mlp_kernel_enabled")
BLOCK = "attn_block_tkg_nki_kernel_enabled"

RULES: tuple[Rule, ...] = (
    Rule(
        ("max_context_length", "max_length", "seq_len"),
        lambda v: v["max_context_length"] > v["max_length"],
        "a prefill is at most max_length ({max_length}).",
        "Lower max_context_length or raise seq_len.",
    ),
    Rule(
        ("context_encoding_buckets", "max_context_length", "seq_len"),
        lambda v: _largest(v, "context_encoding_buckets") > v["max_context_length"],
        "the largest is at most max_context_length ({max_context_length}).",
        "Leave out larger buckets or raise max_context_length.",
    ),
    Rule(
        ("token_generation_buckets", "max_length", "seq_len"),
        lambda v: _largest(v, "token_generation_buckets") > v["max_length"],
        "the largest is at most max_length ({max_length}).",
        "Leave out larger buckets or raise seq_len.",
    ),
    Rule(
        ("buckets", "max_length", "seq_len"),
        lambda v: _largest(v, "buckets") > v["max_length"],
        "the largest is at most max_length ({max_length}).",
        "Leave out larger buckets or raise seq_len.",
    ),
    Rule(
        ("prefix_buckets", "max_length", "seq_len"),
        lambda v: _largest(v, "prefix_buckets") >= v["max_length"],
        "the largest is below max_length ({max_length}): a prompt has more than its prefix.",
        "Leave out larger buckets or raise seq_len.",
    ),
    Rule(
        ("prefix_buckets", "is_prefix_caching"),
        lambda v: _on(v, "prefix_buckets") and v.get("is_prefix_caching") is False,
        "prefix buckets need is_prefix_caching, which is false.",
        "Leave out prefix_buckets or set is_prefix_caching.",
    ),
    Rule(
        ("token_generation_batches", "tkg_batch_size", "batch_size"),
        lambda v: _largest(v, "token_generation_batches") > v["tkg_batch_size"],
        "the largest is at most tkg_batch_size ({tkg_batch_size}).",
        "Leave out larger batches or raise batch_size.",
    ),
    Rule(
        ("token_generation_batches", "speculation_length", "is_medusa"),
        lambda v: _on(v, "token_generation_batches") and _speculates(v),
        "batch buckets exclude speculation.",
        "Leave out one of them.",
    ),
    Rule(
        ("enable_bucketing",),
        lambda v: v.get("enable_bucketing") is False and any(
            len(v.get(key) or ()) > 1
            for key in ("buckets", "context_encoding_buckets", "token_generation_buckets",
                        "prefix_buckets", "token_generation_batches")
        ),
        "one bucket an axis is asked for, and a list of several is given.",
        "Leave out the list or set enable_bucketing.",
    ),
    Rule(
        ("attention_dtype", "torch_dtype"),
        lambda v: v.get("attention_dtype") is not None
        and str(v["attention_dtype"]) != str(v["torch_dtype"])
        and v["cast_type"] != "as-declared",
        'a type other than torch_dtype ({torch_dtype}) needs cast_type "as-declared".',
        "Leave out attention_dtype.",
    ),
    Rule(
        ("cp_degree", "tp_degree"),
        lambda v: v["tp_degree"] % v["cp_degree"] != 0,
        "it has to divide tp_degree ({tp_degree}).",
        "Choose a divisor.",
    ),
    Rule(
        ("mlp_cp_degree", "sequence_parallel_enabled"),
        lambda v: v["mlp_cp_degree"] > 1 and not _on(v, "sequence_parallel_enabled"),
        "above 1 it needs sequence_parallel_enabled.",
        "Set sequence_parallel_enabled.",
    ),
    Rule(
        ("attention_dp_degree", "tp_degree"),
        lambda v: v["tp_degree"] % v["attention_dp_degree"] != 0,
        "it has to divide tp_degree ({tp_degree}).",
        "Choose a divisor.",
    ),
    Rule(
        ("attention_dp_degree", "tkg_batch_size", "batch_size"),
        lambda v: v["attention_dp_degree"] > 1
        and v["tkg_batch_size"] != UNKNOWN
        and v["tkg_batch_size"] % v["attention_dp_degree"] != 0,
        "it has to divide tkg_batch_size ({tkg_batch_size}).",
        "Choose a divisor.",
    ),
    Rule(
        ("attention_dp_degree", "cp_degree"),
        lambda v: v["cp_degree"] > 1 and v["attention_dp_degree"] > 1
        and v["cp_degree"] % v["attention_dp_degree"] != 0,
        "with context parallelism it has to divide cp_degree ({cp_degree}).",
        "Choose a divisor of cp_degree.",
    ),
    Rule(
        ("attention_dp_degree", "is_continuous_batching"),
        lambda v: v["attention_dp_degree"] > 1 and v.get("is_continuous_batching") is False,
        "above 1 it needs is_continuous_batching.",
        "Set is_continuous_batching.",
    ),
    Rule(
        ("strided_context_parallel_kernel_enabled", "cp_degree"),
        lambda v: _on(v, "strided_context_parallel_kernel_enabled") and v["cp_degree"] == 1,
        "the strided kernel needs cp_degree above 1.",
        "Leave it out.",
    ),
    Rule(
        ("ep_dispatch_cc_option", "tp_degree", "tkg_batch_size"),
        lambda v: v["ep_dispatch_cc_option"] == "RS_AG" and v["tp_degree"] > v["tkg_batch_size"],
        "RS_AG needs tp_degree ({tp_degree}) of at most tkg_batch_size ({tkg_batch_size}).",
        "Use AR_AG.",
    ),
    Rule(
        ("world_size", "tp_degree", "pp_degree", "ep_degree"),
        lambda v: "world_size" in v
        and v["world_size"] != v["tp_degree"] * v["pp_degree"] * v["ep_degree"],
        "it is the product of tp_degree ({tp_degree}), pp_degree ({pp_degree}) and ep_degree "
        "({ep_degree}).",
        "Leave it out.",
    ),
    _cores_rule("logical_nc_config"),
    _cores_rule("logical_neuron_cores"),
    Rule(
        ("quantized", "quantized_checkpoints_path"),
        lambda v: _on(v, "quantized") and not v.get("quantized_checkpoints_path"),
        "quantized weights need quantized_checkpoints_path.",
        "Name the folder of the quantised checkpoint.",
    ),
    Rule(
        ("activation_quantization_type", *MLP),
        lambda v: _on(v, "activation_quantization_type") and _on(v, *MLP),
        "quantised activations exclude the MLP kernels.",
        "Leave out one of them.",
    ),
    Rule(
        ("rmsnorm_quantize_kernel_enabled", "quantized_mlp_kernel_enabled"),
        lambda v: _on(v, "rmsnorm_quantize_kernel_enabled")
        and not _on(v, "quantized_mlp_kernel_enabled"),
        "it needs quantized_mlp_kernel_enabled.",
        "Set both or none.",
    ),
    Rule(
        ("chunked_prefill_config", "is_block_kv_layout"),
        lambda v: _on(v, "chunked_prefill_config") and v.get("is_block_kv_layout") is False,
        "chunked prefill needs is_block_kv_layout, which is false.",
        "Set is_block_kv_layout or leave it out.",
    ),
    Rule(
        ("k_cache_transposed", "flash_decoding_enabled", "chunked_prefill_config",
         "is_block_kv_layout"),
        lambda v: _on(v, "k_cache_transposed")
        and _on(v, "flash_decoding_enabled", "chunked_prefill_config", "is_block_kv_layout"),
        "transposed K excludes flash decoding, chunked prefill and the block layout.",
        "Leave out k_cache_transposed.",
    ),
    Rule(
        (BLOCK, "flash_decoding_enabled", "chunked_prefill_config"),
        lambda v: _on(v, BLOCK) and _on(v, "flash_decoding_enabled", "chunked_prefill_config"),
        "the block decode kernel excludes flash decoding and chunked prefill.",
        f"Leave out {BLOCK}.",
    ),
    Rule(
        (BLOCK, *QKV),
        lambda v: _on(v, BLOCK) and not _on(v, *QKV),
        "the block decode kernel needs a QKV kernel.",
        "Set qkv_kernel_enabled.",
    ),
    Rule(
        ("is_medusa", "async_mode"),
        lambda v: _on(v, "is_medusa") and _on(v, "async_mode"),
        "Medusa excludes async_mode.",
        "Leave out one of them.",
    ),
    Rule(
        ("async_mode", "speculation_length", "enable_fused_speculation"),
        lambda v: _on(v, "async_mode") and v["speculation_length"] > 0
        and not _on(v, "enable_fused_speculation", "enable_eagle_speculation"),
        "speculation with async_mode has to be fused.",
        "Set enable_fused_speculation.",
    ),
    Rule(
        ("enable_fused_speculation", "enable_eagle_speculation"),
        lambda v: _on(v, "enable_eagle_speculation")
        and v.get("enable_fused_speculation") is False,
        "EAGLE is fused speculation.",
        "Leave out enable_fused_speculation.",
    ),
    Rule(
        ("tensor_capture_config", "on_device_sampling_config"),
        lambda v: _on(v, "tensor_capture_config") and not _on(v, "on_device_sampling_config"),
        "capturing tensors needs on_device_sampling_config.",
        "Set on_device_sampling_config.",
    ),
)  # fmt: skip

SEGMENTS = (512, 1024, 2048, 4096, 8192)

PLUGIN_RULES: tuple[Rule, ...] = (
    Rule(
        ("num_batched_tokens_buckets",),
        lambda v: (
            v["max_num_batched_tokens"] != UNKNOWN
            and _largest(v, "num_batched_tokens_buckets") != v["max_num_batched_tokens"]
        ),
        "the largest equals max_num_batched_tokens ({max_num_batched_tokens}).",
        "Add it, or leave out --max-num-batched-tokens.",
    ),
    Rule(
        ("num_seqs_buckets",),
        lambda v: (
            v["max_num_seqs"] != UNKNOWN and _largest(v, "num_seqs_buckets") != v["max_num_seqs"]
        ),
        "the largest equals max_num_seqs ({max_num_seqs}).",
        "Add it, or leave out --max-num-seqs.",
    ),
    Rule(
        ("decode_context_length_buckets",),
        lambda v: _largest(v, "decode_context_length_buckets") >= v["max_model_len"],
        "each is below max_model_len ({max_model_len}), which has a bucket always.",
        "Leave out larger buckets.",
    ),
    Rule(
        ("decode_context_length_buckets",),
        lambda v: any(size % 128 for size in v["decode_context_length_buckets"]),
        "each is a multiple of 128.",
        "Round them up.",
    ),
    Rule(
        ("kv_segment_size_buckets",),
        lambda v: (
            len(v["kv_segment_size_buckets"]) != 1
            or v["kv_segment_size_buckets"][0] not in SEGMENTS
        ),
        f"it holds one of {SEGMENTS}.",
        "Choose one.",
    ),
    Rule(
        ("kv_segment_size_buckets",),
        lambda v: any(size % v["block_size"] for size in v["kv_segment_size_buckets"]),
        "it is a multiple of block_size ({block_size}).",
        "Choose a multiple.",
    ),
    Rule(
        ("kv_segment_size_buckets", "num_batched_tokens_buckets"),
        lambda v: (
            "kv_segment_size_buckets" in v
            and list(v["kv_segment_size_buckets"])
            != list(v.get("num_batched_tokens_buckets") or ())
        ),
        "it equals num_batched_tokens_buckets.",
        "Give both the same value.",
    ),
)
