"""additional_config of vllm-neuron 0.24: neuron_config, the vision section, the top level."""

from __future__ import annotations

from ranvier.targets.neuron.config.field import Field, honoured, refused, satisfied

__all__ = ["PLUGIN", "PLUGIN_SAMPLING", "TOP_LEVEL", "VISION"]

_PARALLEL = "parallelism of single components is not supported yet"
_CACHE = "the buffer of features is sized by the encoder's buckets and max_model_len"

PLUGIN: tuple[Field, ...] = (
    honoured(
        "num_batched_tokens_buckets", "sizes", None, "buckets",
        "prefill buckets, in tokens; the last is max_num_batched_tokens",
    ),
    honoured(
        "num_seqs_buckets", "sizes", None, "buckets", "decode row buckets; the last is max_num_seqs"
    ),
    satisfied(
        "kv_segment_size_buckets", "sizes", None,
        "prefill reads the KV of earlier chunks block by block, with no segment to size",
    ),
    honoured(
        "decode_context_length_buckets", "sizes", None, "buckets",
        "context buckets, in tokens; max_model_len is added",
    ),
    honoured(
        "on_device_sampling_config", "dict", None, "override_generation_config",
        "sampling is inside the program always; its values are the defaults of requests",
    ),
    refused(
        "quantization", "str", None, "weights quantised for Neuron are not supported yet", ("bf16",)
    ),
    refused("ep_degree", "count", None, "mixtures of experts are not supported yet", (1,)),
    refused(
        "apply_prefill_dcp", "bool", None, "context parallelism is not supported yet", (False,)
    ),
    refused("attention_dp_size", "count", None, _PARALLEL, (1,)),
    refused("embedding_dp_size", "count", None, _PARALLEL, (1,)),
    refused("lm_head_dp_size", "count", None, _PARALLEL, (1,)),
    refused("mlp_dp_size", "count", None, _PARALLEL, (1,)),
    refused("tensor_capture", "any", None, "capturing tensors is not supported"),
)  # fmt: skip

PLUGIN_SAMPLING: tuple[Field, ...] = (
    honoured("temperature", "number", None, "override_generation_config", "default of requests"),
    honoured("top_k", "int", None, "override_generation_config", "default of requests"),
    honoured("top_p", "float", None, "override_generation_config", "default of requests"),
    honoured(
        "all_greedy", "bool", None, "override_generation_config",
        "true makes temperature 0 the default of requests",
    ),
)  # fmt: skip

VISION: tuple[Field, ...] = (
    honoured(
        "num_vision_tokens_buckets", "sizes", None, "buckets",
        "encode buckets, in patches; a model of tiles takes whole tiles",
    ),
    satisfied(
        "vision_attention_block_size", "count", 2048,
        "an encoder takes at most 256 queries at a time where a picture has over 1,024 patches",
    ),
    refused(
        "max_vision_seq_len", "int", None, "the last of num_vision_tokens_buckets bounds a picture"
    ),
    satisfied(
        "tp_size", "count", 1,
        "an encoder's heads and MLP lie over the cores of the text side where they divide",
    ),
    refused("dp_size", "count", 1, "an encoder takes one picture at a time"),
    refused("encoder_cache_num_blocks", "int", None, _CACHE),
    refused("encoder_cache_min_hold_time_ms", "int", None, _CACHE),
)  # fmt: skip

TOP_LEVEL: tuple[Field, ...] = (
    honoured(
        "mm_language_model_only",
        "bool",
        False,
        "limit_mm_per_prompt",
        "true builds the text part of a model alone",
    ),
)
