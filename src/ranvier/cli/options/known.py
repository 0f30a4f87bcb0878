"""vLLM's options and variables that Ranvier knows without a field of its own: one literal table.

An option with a field in Options or FrontOptions is honoured. One that is here is accepted for the
values in `accepted`, with a notice that says why it changes nothing, and refused by name for any
other value. Everything else is an unknown option.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ANY", "ENVIRONMENT", "KNOWN", "Known"]

ANY = None
"""Accepted: every value."""


class Known(NamedTuple):
    """An option without effect (`accepted`: ANY or values) or without support (none accepted)."""

    accepted: tuple[Any, ...] | None
    reason: str
    is_switch: bool = False


_AHEAD = "every program is compiled ahead of time; nothing is captured or compiled while serving"
_RECOMPUTE = "a sequence that loses its blocks is recomputed, never swapped"
_ONE = "one device serves the model in this version"
_SERVER = "an LLM in this process is one engine; ranvier serve has replicas and ranks"
_SPECULATION = "give it in speculative_config={'model': ..., 'num_speculative_tokens': ...}"
_EXPERTS = "it splits the experts of a model, and no family with experts is served yet"
_LOOP = "the engine has one loop, in steps of its own"
_TRANSFER = "KV caches are not moved between servers"
_OFFLOAD = "weights are mapped from the artifact; the system pages them"
_TOOLS = "tools are not supported yet"
_POOLING = "only text generation is served in this version"

KNOWN: dict[str, Known] = {
    # Satisfied otherwise.
    "enforce_eager": Known(ANY, _AHEAD, True),
    "compilation_config": Known(ANY, _AHEAD),
    "optimization_level": Known(ANY, _AHEAD),
    "max_seq_len_to_capture": Known(ANY, _AHEAD),
    "max_cudagraph_capture_size": Known(ANY, _AHEAD),
    "cudagraph_capture_sizes": Known(ANY, _AHEAD),
    "swap_space": Known(ANY, _RECOMPUTE),
    "trust_remote_code": Known(ANY, "code that comes with a model is never run", True),
    "disable_log_requests": Known(ANY, "requests are logged with enable_log_requests only", True),
    "served_model_name": Known(ANY, "names matter to a server only"),
    "disable_log_stats": Known(ANY, "lines of throughput: see log_stats_interval", True),
    "aggregate_engine_logging": Known(ANY, "there is one engine", True),
    "use_tqdm_on_load": Known(ANY, "progress is shown on a terminal only", True),
    "disable_custom_all_reduce": Known(ANY, _ONE, True),
    "use_v2_block_manager": Known(ANY, "there is one block allocator", True),
    "enable_chunked_prefill": Known((True,), "long prompts are always prefilled in chunks", True),
    "disable_cascade_attn": Known(ANY, "the attention kernel has no cascade", True),
    "disable_sliding_window": Known((False,), "the model's own windows are used", True),
    "skip_tokenizer_init": Known((False,), "the tokenizer is part of the artifact", True),
    "disable_hybrid_kv_cache_manager": Known(ANY, "every layer keeps blocks of one size", True),
    "multi_step_stream_outputs": Known(ANY, _LOOP, True),
    "num_scheduler_steps": Known((1,), _LOOP),
    "tokenizer_mode": Known(("auto", "hf", "fast"), "tokenizers are read from tokenizer.json"),
    "load_format": Known(
        ("auto", "safetensors", "gguf", "hf"), "the format is found from the files"
    ),
    "config_format": Known(("auto", "hf"), "the format is found from the files"),
    "device_config": Known((), "the target is chosen at build"),
    "runner": Known(("auto", "generate"), _POOLING),
    "task": Known(("auto", "generate"), _POOLING),
    "convert": Known(("auto", "none"), _POOLING),
    "data_parallel_size": Known((1,), _SERVER),
    "decode_context_parallel_size": Known((1,), _ONE),
    "prefill_context_parallel_size": Known((1,), _ONE),
    "nnodes": Known((1,), _SERVER),
    "node_rank": Known((0,), _SERVER),
    "distributed_executor_backend": Known(("uni", "mp"), _SERVER),
    "data_parallel_backend": Known(("mp",), "replicas are processes behind one server"),
    "data_parallel_hybrid_lb": Known((False,), "one server routes to all replicas", True),
    "data_parallel_external_lb": Known((False,), "one server routes to all replicas", True),
    "max_parallel_loading_workers": Known(ANY, _OFFLOAD),
    "cpu_offload_gb": Known((0, 0.0), _OFFLOAD),
    "calculate_kv_scales": Known((False,), "the cache is not scaled", True),
    "enable_expert_parallel": Known((False,), _EXPERTS, True),
    "enable_eplb": Known((False,), _EXPERTS, True),
    "enable_prompt_embeds": Known((False,), "prompts are text or token ids", True),
    "enable_sleep_mode": Known((False,), "sleep mode is not supported", True),
    "scheduling_policy": Known(("fcfs",), "requests are served in order of arrival"),
    "prefix_caching_hash_algo": Known(ANY, "prefixes are keyed by their own collision-free hash"),
    "logits_processors": Known(([], ()), "Python code in the sampling loop is not supported"),
    "max_logprobs": Known((20,), "20 log-probabilities are compiled into the programs"),
    "logprobs_mode": Known(("raw_logprobs",), "log-probabilities are of the raw logits"),
    # Of the HTTP server.
    "enable_request_id_headers": Known(ANY, "X-Request-Id is always echoed", True),
    "chat_template_content_format": Known(
        ("auto", "string"), "text parts are joined before the template sees them"
    ),
    "exclude_tools_when_tool_choice_none": Known((False,), _TOOLS, True),
    "enable_auto_tool_choice": Known((False,), _TOOLS, True),
    "tool_call_parser": Known((), _TOOLS),
    "tool_parser_plugin": Known((), "foreign code is not run in the server"),
    "reasoning_parser": Known((), "reasoning is not parsed yet"),
    "middleware": Known((), "foreign code is not run in the server"),
    "enable_offline_docs": Known((False,), "there is /openapi.json, no page of it", True),
    "custom_histogram_buckets": Known((), "buckets are vLLM's own"),
    "enable_ssl_refresh": Known((False,), "restart the server to change certificates", True),
    "enable_log_deltas": Known((False,), "outputs are logged whole (enable_log_outputs)", True),
    "log_error_stack": Known(ANY, "the stack of an internal error is always logged", True),
    "uvicorn_log_level": Known(ANY, "see logging_level"),
    "log_config_file": Known((), "see log_format and logging_level"),
    "enable_per_request_metrics": Known((False,), "answers of a server tell them", True),
    "per_request_spec_decode_metrics": Known(
        ("none", "summary", "detailed"), "every output of an LLM has spec_decode_metrics"
    ),
    "h11_max_incomplete_event_size": Known((), "headers may take 64 KiB"),
    "h11_max_header_count": Known((), "headers may take 64 KiB"),
    "fingerprint_mode": Known(("hash",), "the fingerprint is the version and a hash"),
    "otlp_traces_endpoint": Known((), "traces are not exported yet"),
    "collect_detailed_traces": Known((), "traces are not exported yet"),
    "kv_cache_metrics": Known((False,), "blocks are not sampled", True),
    "api_server_count": Known((1,), "one process speaks HTTP"),
    "headless": Known((False,), "one process speaks HTTP", True),
    # Refused.
    "quantization_param_path": Known((), "scales come with the checkpoint"),
    "speculative_model": Known((), _SPECULATION),
    "num_speculative_tokens": Known((), _SPECULATION),
    "lora_dtype": Known(("auto",), "adapters have the model's dtype"),
    "lora_extra_vocab_size": Known((0,), "adapters that add tokens are not supported"),
    "fully_sharded_loras": Known(
        (False,), "A is whole on every rank but where inputs are cut", True
    ),
    "model_loader_extra_config": Known((), _OFFLOAD),
    "mm_processor_cache_gb": Known(ANY, "features of pictures stay in a buffer of the device"),
    "media_io_kwargs": Known((), "pictures are decoded as the model's own processor wants them"),
    "pooler_config": Known((), _POOLING),
    "override_pooler_config": Known((), _POOLING),
    "hf_token": Known((), "give the token in the variable HF_TOKEN, never on a command line"),
    "hf_config_path": Known((), "the config lies in the model's folder; see hf_overrides"),
    "code_revision": Known((), "code that comes with a model is never run"),
    "rope_scaling": Known((), "use hf_overrides={'rope_scaling': ...}"),
    "rope_theta": Known((), "use hf_overrides={'rope_theta': ...}"),
    "kv_transfer_config": Known((), _TRANSFER),
    "kv_events_config": Known((), _TRANSFER),
    "kv_offloading_size": Known((), _TRANSFER),
    "kv_offloading_backend": Known((), _TRANSFER),
    "attention_backend": Known((), "the target has one attention kernel"),
    "attention_config": Known((), "the target has one attention kernel"),
    "worker_cls": Known((), "foreign code is not run in the engine"),
    "worker_extension_cls": Known((), "foreign code is not run in the engine"),
    "scheduler_cls": Known((), "foreign code is not run in the engine"),
    "structured_outputs_config": Known((), "structured outputs have one backend, without options"),
    "guided_decoding_backend": Known((), "structured outputs have one backend, without options"),
    "sleep_mode": Known((), "sleep mode is not supported", True),
    "max_num_partial_prefills": Known((), "prompts are prefilled in order of arrival"),
    "max_long_partial_prefills": Known((), "prompts are prefilled in order of arrival"),
    "long_prefill_token_threshold": Known((), "prompts are prefilled in order of arrival"),
}

ENVIRONMENT: dict[str, tuple[str | None, str]] = {
    "VLLM_API_KEY": ("api_key", ""),
    "VLLM_SERVER_DEV_MODE": ("server_dev_mode", ""),
    "VLLM_LOGGING_LEVEL": ("logging_level", ""),
    "VLLM_LOG_STATS_INTERVAL": ("log_stats_interval", ""),
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": ("timeout_keep_alive", ""),
    "VLLM_CPU_KVCACHE_SPACE": ("kv_cache_memory_bytes", "G"),
    "VLLM_CACHE_ROOT": ("cache_root", ""),
    "VLLM_CPU_OMP_THREADS_BIND": (None, "the kernels use one thread per core"),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": (None, "the kernels use one thread per core"),
    "VLLM_BATCH_INVARIANT": (None, "results never depend on the batch"),
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": (None, "use hf_overrides={'max_position_embeddings': n}"),
    "VLLM_USE_V1": (None, "there is one engine"),
    "VLLM_ATTENTION_BACKEND": (None, "the target has one attention kernel"),
    "VLLM_WORKER_MULTIPROC_METHOD": (None, "no process is forked"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": (None, "LLM runs in this process"),
    "VLLM_USE_MODELSCOPE": (None, "models come from a folder, a file or the Hugging Face hub"),
    "VLLM_HOST_IP": (None, "use --host"),
    "VLLM_PORT": (None, "use --port"),
    "VLLM_CONFIG_ROOT": (None, "use --config FILE"),
    "VLLM_PLUGINS": (None, "plug-ins are not loaded"),
    "VLLM_NEURON_DISABLE_WARMUP_COMPILE": ("require_artifacts", ""),
    "VLLM_NEURON_BACKEND": (None, "there is one engine; use --kv-layout for the layout"),
    "VLLM_NEURON_CPU_COMPILE": (None, "use --target to compile for Neuron"),
    "VLLM_NEURON_CPU_MODE": (None, "use --device cpu"),
    "NEURON_ON_DEVICE_SAMPLING_DISABLED": (None, "sampling is on the device, with every parameter"),
    "NEURON_QUANT_DTYPE": (None, "the checkpoint's own format says it"),
    "DISABLE_NEURON_CUSTOM_SCHEDULER": (None, "there is one scheduler"),
    "VLLM_NO_USAGE_STATS": (None, "nothing is ever sent"),
    "VLLM_DO_NOT_TRACK": (None, "nothing is ever sent"),
}
"""Variables of vLLM and of its Neuron plug-ins: the option that each sets (with the unit of its
value), or why it has none."""
