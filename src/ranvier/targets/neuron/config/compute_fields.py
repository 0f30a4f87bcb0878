"""NxDI's NeuronConfig: kernels, weights, compiler, vision and debugging."""

from __future__ import annotations

from ranvier.targets.neuron.config.field import Derived, Field, honoured, refused, satisfied

__all__ = ["COMPILER", "DEBUG", "KERNELS", "WEIGHTS"]

_KERNEL = "each target has its kernels, chosen when a program is built"
_MODEL = "the model's own config says it"
_CONTEXT = "context parallelism is not supported yet"
_QUANTISED = "quantised weights for Neuron are not supported yet"
_FLAG = "flags of neuronx-cc are not taken from a configuration yet"
_CORES = "physical cores of a logical one"
_EXPERTS = "mixtures of experts are not supported yet"

KERNELS: tuple[Field, ...] = (
    satisfied("attn_cls", "str", "NeuronLlamaAttention", _MODEL),
    satisfied("attn_kernel_enabled", "bool", None, _KERNEL),
    satisfied("fused_qkv", "bool", False, "q, k and v are one packed matrix always"),
    satisfied("qkv_kernel_enabled", "bool", False, _KERNEL),
    satisfied("qkv_nki_kernel_enabled", "bool", False, _KERNEL),
    satisfied("qkv_cte_nki_kernel_fuse_rope", "bool", False, _KERNEL),
    satisfied("qkv_kernel_nbsd_layout", "bool", False, _KERNEL),
    satisfied("qkv_kernel_fuse_residual_add", "bool", False, _KERNEL),
    satisfied("mlp_kernel_enabled", "bool", False, _KERNEL),
    satisfied("mlp_kernel_fuse_residual_add", "bool", False, _KERNEL),
    refused("quantized_mlp_kernel_enabled", "bool", False, _QUANTISED),
    refused("rmsnorm_quantize_kernel_enabled", "bool", False, _QUANTISED),
    satisfied("fused_rmsnorm_skip_gamma", "bool", False, _KERNEL),
    satisfied("out_proj_kernel_enabled", "bool", False, _KERNEL),
    satisfied("attn_block_tkg_nki_kernel_enabled", "bool", False, _KERNEL),
    satisfied("attn_block_tkg_nki_kernel_cache_update", "bool", False, _KERNEL),
    satisfied("attn_block_tkg_nki_kernel_cascaded_attention", "bool", False, _KERNEL),
    satisfied("attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb", "bool", False, _KERNEL),
    satisfied("attn_block_tkg_nki_kernel_use_online_softmax", "bool", True, _KERNEL),
    refused("strided_context_parallel_kernel_enabled", "bool", False, _CONTEXT),
    satisfied("qk_layernorm", "bool", False, _MODEL),
    satisfied("pre_rope_rmsnorm", "bool", False, _MODEL),
    satisfied("mlp_tkg_nki_kernel_enabled", "bool", False, _KERNEL),
    satisfied("attn_tkg_nki_kernel_enabled", "bool", False, _KERNEL),
    satisfied("attn_tkg_builtin_kernel_enabled", "bool", False, _KERNEL),
    satisfied("attn_block_cte_nki_kernel_enabled", "bool", False, _KERNEL),
    refused("moe_fused_nki_kernel_enabled", "bool", None, _EXPERTS, (False,)),
    refused("router_topk_nki_kernel_enabled", "bool", None, _EXPERTS, (False,)),
    refused("expert_mlp_nki_kernel_enabled", "bool", None, _EXPERTS, (False,)),
    refused("shared_mlp_nki_kernel_enabled", "bool", None, _EXPERTS, (False,)),
)

WEIGHTS: tuple[Field, ...] = (
    satisfied(
        "save_sharded_checkpoint", "bool", False, "each rank's packed weights are kept always"
    ),
    satisfied("skip_sharding", "bool", False, "weights are packed once, never at load"),
    satisfied(
        "skip_warmup", "bool", False,
        "each program runs once before ready, so that no request pays for the first run",
    ),
    satisfied("on_cpu", "bool", False, "the target says where programs run"),
    satisfied(
        "weights_to_skip_layout_optimization", "strings", [], "all programs share one packed layout"
    ),
)  # fmt: skip

COMPILER: tuple[Field, ...] = (
    honoured(
        "logical_nc_config",
        "count",
        Derived("2 on trn2 and trn3, else 1"),
        "logical_nc_config",
        _CORES,
    ),
    honoured(
        "logical_neuron_cores",
        "count",
        Derived("as logical_nc_config, its old name"),
        "logical_nc_config",
        _CORES,
    ),
    satisfied("lm_head_pad", "bool", Derived("logical_nc_config > 1"), "the head is padded always"),
    satisfied("lm_head_pad_alignment_size", "int", 1, "the head is padded as the kernels need"),
    refused("cc_pipeline_tiling_factor", "int", 2, _FLAG, (1,)),
    refused("seq_len_threshold_for_cc_tiling", "int", 16384, _FLAG),
    honoured("target", "str", None, "target", "trn2 is the target neuron-trn2, and so on"),
    refused("scratchpad_page_size", "int", None, _FLAG),
    refused("dma_order_config", "any", None, _FLAG),
    refused("enable_spill_reload_dge", "bool", False, _FLAG),
    refused("enable_output_completion_notifications", "bool", False, _FLAG),
    refused("disable_numeric_cc_token", "bool", False, _FLAG),
    satisfied("enable_cte_modular_flow", "bool", False, "NxDI ignores it too"),
)

DEBUG: tuple[Field, ...] = (
    honoured(
        "skip_vision",
        "bool",
        False,
        "limit_mm_per_prompt",
        "true builds the text part of a model alone",
    ),
    refused("tensor_capture_config", "any", None, "capturing tensors is not supported"),
    refused("tensor_replacement_config", "any", None, "replacing tensors is not supported"),
    satisfied("layer_boundary_markers", "bool", False, "each stage of a program has a named scope"),
)
