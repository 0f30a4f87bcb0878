"""NxDI's NeuronConfig: speculation, parallelism, adapters."""

from __future__ import annotations

from ranvier.targets.neuron.config.field import Derived, Field, honoured, refused, satisfied

__all__ = ["LORA", "LORA_SERVING", "PARALLEL", "SPECULATION"]

_MEDUSA = "Medusa heads are not supported; EAGLE heads and draft models are"
_PARALLEL = "only tensor parallelism is planned from here; this axis is not supported yet"
_MODULES = "adapters that are served from the start, beside those of --lora-modules"
_FORMS = "a dictionary of names and folders, or a list of name:path"
_TARGETS = "the linears that adapters may change"
_SPLIT = "how ranks share the work changes no result; the build decides it"

SPECULATION: tuple[Field, ...] = (
    honoured(
        "speculation_length", "int", 0, "speculative_config",
        "tokens guessed a step, as num_speculative_tokens",
    ),
    honoured(
        "enable_fused_speculation", "bool", False, "speculative_config",
        "guesses are verified and made in one program; speculative_config names the draft",
    ),
    honoured(
        "enable_eagle_speculation", "bool", False, "speculative_config",
        "the draft of speculative_config is a head",
    ),
    honoured("is_eagle3", "bool", False, "speculative_config", "the head is of the third kind"),
    satisfied("is_eagle_draft", "bool", False, "the draft's own files say what it is"),
    satisfied(
        "enable_eagle_draft_input_norm", "bool", False, "the head's own files say if it has one"
    ),
    satisfied(
        "eagle_rolling_buffer_kernel_enabled", "bool", False,
        "a head's keys and values lie in the blocks of the model's",
    ),
    refused(
        "token_tree_config", "any", None,
        "guesses are chains, of speculation_length (docs/speculation.md says why)",
    ),
    refused("is_medusa", "bool", False, _MEDUSA),
    refused("medusa_speculation_length", "int", 0, _MEDUSA),
    refused("num_medusa_heads", "int", 0, _MEDUSA),
    refused("medusa_tree", "any", None, _MEDUSA, (0,)),
    satisfied(
        "trace_tokengen_model", "bool", Derived("not speculating"),
        "programs for single tokens are built always",
    ),
)  # fmt: skip

PARALLEL: tuple[Field, ...] = (
    honoured("tp_degree", "count", 1, "tensor_parallel_size", "devices that share the model"),
    refused("cp_degree", "count", 1, _PARALLEL),
    refused("mlp_cp_degree", "count", 1, _PARALLEL),
    refused("attention_dp_degree", "count", 1, _PARALLEL),
    honoured("pp_degree", "count", 1, "pipeline_parallel_size", "stages that share the layers"),
    refused("ep_degree", "count", 1, _PARALLEL),
    satisfied(
        "world_size", "count", Derived("tp_degree * pp_degree * ep_degree"),
        "it follows from the degrees, and has to equal their product",
    ),
    refused("start_rank_id", "int", 0, "programs that span several hosts are not supported yet"),
    satisfied("local_ranks_size", "count", Derived("world_size"), "it follows from the degrees"),
    honoured(
        "sequence_parallel_enabled", "bool", False, "sequence_parallel",
        "norms are cut along the tokens of a prefill program",
    ),
    satisfied("vocab_parallel", "bool", False, _SPLIT),
    refused(
        "flash_decoding_enabled", "bool", False, "KV heads are not split along the sequence yet"
    ),
    satisfied("weight_gather_seq_len_threshold", "count", 32768, _SPLIT),
    refused("enable_ve_data_parallel", "bool", False, "an encoder takes one picture at a time"),
    satisfied("switch_cc", "bool", False, _SPLIT),
    satisfied("ep_dispatch_cc_option", "str", "AR_AG", _SPLIT),
)  # fmt: skip

LORA: tuple[Field, ...] = (
    honoured("lora_config", "dict", None, "enable_lora", "slots for adapters are compiled in"),
    honoured("lora_modules", "any", None, "lora_modules", f"{_MODULES}; name and path of each"),
    honoured("lora_ckpt_json", "str", None, "lora_modules", f"a file of {_MODULES}"),
    honoured("target_modules", "strings", None, "lora_target_modules", _TARGETS),
)
"""lora_config is NxDI's; the others are keys that vLLM's plug-ins add to the same dictionary."""

LORA_SERVING: tuple[Field, ...] = (
    honoured("max_loras", "count", 1, "max_loras", "slots"),
    honoured("max_lora_rank", "count", 16, "max_lora_rank", "the largest rank that is taken"),
    honoured("max_cpu_loras", "count", 100, "max_cpu_loras", "adapters kept in host memory"),
    satisfied("batch_size", "count", 1, "each sequence of a batch has its own adapter"),
    honoured("target_modules", "strings", None, "lora_target_modules", _TARGETS),
    refused("lora_bias", "str", "none", "an adapter's bias is not supported"),
    honoured("lora_ckpt_paths", "any", None, "lora_modules", f"{_MODULES}; {_FORMS}"),
    honoured("lora_ckpt_paths_cpu", "any", None, "lora_modules", f"the same; {_FORMS}"),
    honoured("lora_ckpt_json", "str", None, "lora_modules", f"a file of {_MODULES}"),
    satisfied("lora_memory_transpose", "bool", True, "the target's kernels say how slots lie"),
    satisfied("lora_shard_linear_layer", "bool", True, "adapters are cut as their linears"),
    satisfied("is_context_encoding", "bool", False, "every program takes adapters"),
    satisfied("dynamic_multi_lora", "bool", False, "adapters come and go while the server runs"),
    honoured(
        "eviction_policy", "str", "lru", "lora_eviction", "which idle adapter leaves its slot"
    ),
    honoured(
        "lfu_decay_period", "count", 128, "lora_lfu_decay_period",
        "lfu: uses of adapters after which all counts of uses are halved",
    ),
    satisfied("base_model_quantized", "bool", False, "the base may be dense or quantised"),
    satisfied("enable_base_model_only", "bool", False, "requests without an adapter always run"),
)  # fmt: skip
