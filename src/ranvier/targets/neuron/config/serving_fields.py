"""NxDI's NeuronConfig: shapes, types, sampling, buckets, scheduling and KV memory."""

from __future__ import annotations

from ranvier.targets.neuron.config.field import Derived, Field, honoured, refused, satisfied

__all__ = ["BUCKETING", "CACHE", "CHUNKED_PREFILL", "DTYPE", "SAMPLING", "SAMPLING_CONFIG", "SHAPE"]

_BATCH = Derived("batch_size")
_LENGTH = Derived("seq_len")
_KV_TYPE = "kv_cache_quant casts to e4m3 directly; other ways are not supported"
_BLOCKS = "the kernels of the target choose how a block is laid out"

SHAPE: tuple[Field, ...] = (
    honoured("batch_size", "count", 1, "max_num_seqs", "sequences that run at once"),
    honoured("max_batch_size", "count", _BATCH, "max_num_seqs", "as batch_size"),
    honoured("tkg_batch_size", "count", _BATCH, "max_num_seqs", "as batch_size"),
    satisfied(
        "ctx_batch_size", "count", _BATCH,
        "a step takes any mix of prefill and decode, or prefills one sequence at a time",
    ),
    satisfied(
        "kv_cache_batch_size", "count", _BATCH,
        "KV memory is counted in blocks (pa_num_blocks), not in rows",
    ),
    satisfied(
        "kv_cache_padding_size", "int", 0, "block 0 takes what padding writes, in every build"
    ),
    satisfied(
        "spec_batch_size", "count", _BATCH, "guesses are verified at every batch at which they pay"
    ),
    honoured("seq_len", "count", 128, "max_model_len", "tokens of a prompt with its output"),
    honoured("max_length", "count", _LENGTH, "max_model_len", "as seq_len"),
    honoured("n_positions", "count", _LENGTH, "max_model_len", "as seq_len"),
    honoured(
        "max_context_length", "count", _LENGTH, "max_num_batched_tokens",
        "tokens of one prefill; longer prompts are prefilled in chunks instead of refused",
    ),
    satisfied(
        "max_new_tokens", "int", Derived("seq_len - max_context_length"),
        "max_tokens of each request says it, up to max_model_len",
    ),
    satisfied("n_active_tokens", "count", _LENGTH, "a program's bucket says it"),
    satisfied(
        "padding_side", "str", "right", "a step is packed without padding between its rows"
    ),
    refused(
        "allow_input_truncation", "bool", False,
        "a prompt that is too long is an error; a request may set truncate_prompt_tokens",
    ),
    satisfied("is_continuous_batching", "bool", False, "batching is continuous always"),
    satisfied("padded_hidden_size", "count", None, "weights are padded when they are packed"),
    satisfied("padded_intermediate_size", "count", None, "weights are padded when they are packed"),
)  # fmt: skip

DTYPE: tuple[Field, ...] = (
    honoured("torch_dtype", "dtype", "bfloat16", "dtype", "type of weights and KV cache"),
    satisfied("overrides_torch_dtype", "bool", Derived("a dtype is given"), "dtype says it"),
    refused(
        "cast_type", "str", "config", "weights are cast to dtype; types as declared are not kept"
    ),
    refused("rpl_reduce_dtype", "dtype", None, "no program of one device has a reduction to type"),
    refused(
        "attention_dtype", "dtype", None, "attention has the dtype of the model, sums in float32"
    ),
)  # fmt: skip

SAMPLING: tuple[Field, ...] = (
    honoured(
        "on_device_sampling_config", "dict", None, "override_generation_config",
        "sampling is inside the program always; its values are the defaults of requests",
    ),
    refused("output_logits", "bool", False, "logits stay on the device; requests ask for logprobs"),
    satisfied("disable_argmax_kernel", "bool", False, "the kernels of the target say it"),
)  # fmt: skip

SAMPLING_CONFIG: tuple[Field, ...] = (
    honoured(
        "do_sample", "bool", False, "override_generation_config",
        "false makes temperature 0 the default of requests",
    ),
    honoured("top_k", "count", 1, "override_generation_config", "default of requests"),
    honoured("top_p", "float", 1.0, "override_generation_config", "default of requests"),
    honoured("temperature", "float", 1.0, "override_generation_config", "default of requests"),
    satisfied("dynamic", "bool", False, "every request brings its own values always"),
    satisfied("deterministic", "bool", False, "the same seed gives the same tokens always"),
    satisfied("global_topk", "count", 256, "top-k is exact over the whole vocabulary"),
    satisfied("top_k_kernel_enabled", "bool", Derived("not on trn1"), "the target's kernels do it"),
    refused("sampling_dp_degree", "count", 1, "one device samples"),
    satisfied("on_device_sampling_config", "bool", True, "sampling is on the device always"),
)  # fmt: skip

BUCKETING: tuple[Field, ...] = (
    honoured(
        "enable_bucketing", "bool", False, "buckets",
        "false: one program for prefill and one for decode; unset or true: several",
    ),
    honoured(
        "buckets", "sizes", Derived("[seq_len]"), "buckets",
        "prefill and context buckets where no list of their own is given",
    ),
    honoured("context_encoding_buckets", "sizes", None, "buckets", "prefill buckets, in tokens"),
    honoured(
        "prefix_buckets", "sizes", None, "buckets",
        "each adds a context bucket for that prefix and the longest prefill",
    ),
    honoured("token_generation_buckets", "sizes", None, "buckets", "context buckets, in tokens"),
    honoured("token_generation_batches", "sizes", None, "buckets", "decode row buckets"),
    satisfied("bucket_n_active_tokens", "bool", False, "prefill buckets count active tokens"),
)  # fmt: skip

CACHE: tuple[Field, ...] = (
    honoured(
        "async_mode", "bool", False, "async_scheduling",
        "the next step is planned and launched before the result of the last is read",
    ),
    satisfied(
        "is_block_kv_layout", "bool", False,
        "the KV cache is in blocks unless --kv-layout contiguous asks for regions",
    ),
    honoured(
        "pa_num_blocks", "count", _BATCH, "num_gpu_blocks_override",
        "KV blocks; one more is added for padding",
    ),
    honoured("pa_block_size", "count", _LENGTH, "block_size", "tokens of a KV block"),
    honoured("is_prefix_caching", "bool", False, "enable_prefix_caching", "equal prefixes"),
    refused(
        "windowed_context_encoding_size", "int", None,
        "prompts are cut by max_num_batched_tokens; the model's own window is in its attention",
    ),
    satisfied(
        "chunked_prefill_config", "dict", None,
        "prompts longer than max_num_batched_tokens are prefilled in chunks always",
    ),
    honoured(
        "kv_cache_quant", "bool", False, "kv_cache_dtype", "true: fp8, cast directly; false: auto"
    ),
    refused("kv_quant_config", "dict", None, _KV_TYPE),
    satisfied("disable_kv_cache_tiling", "bool", False, _BLOCKS),
    satisfied("k_cache_transposed", "bool", False, _BLOCKS),
    satisfied("apply_seq_ids_mask", "bool", False, "padding rows write to block 0 only"),
)  # fmt: skip

CHUNKED_PREFILL: tuple[Field, ...] = (
    satisfied("max_num_seqs", "int", 0, "a step holds chunks of up to max_num_seqs sequences"),
    satisfied("tkg_model_enabled", "bool", True, "decode rows share the step with chunks"),
    satisfied("kernel_q_tile_size", "count", 128, "the target's kernels tile as they need"),
    satisfied("kernel_kv_tile_size", "count", 1024, "the target's kernels tile as they need"),
)  # fmt: skip
