"""The configuration table is complete, and each row says truly what becomes of its field."""

from __future__ import annotations

import dataclasses

import pytest

from ranvier.cli.options.settings import Options
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.table import CHILDREN, SECTIONS
from ranvier.targets.neuron.config.translate import translate

# Typed in from the published sources, independently of the table.
NAMES = {
    "NeuronConfig": """
        batch_size seq_len max_context_length max_length max_new_tokens n_active_tokens n_positions
        ctx_batch_size tkg_batch_size max_batch_size kv_cache_batch_size spec_batch_size
        kv_cache_padding_size padding_side allow_input_truncation is_continuous_batching
        padded_hidden_size padded_intermediate_size
        torch_dtype overrides_torch_dtype cast_type rpl_reduce_dtype attention_dtype
        on_device_sampling_config output_logits disable_argmax_kernel
        enable_bucketing buckets bucket_n_active_tokens context_encoding_buckets prefix_buckets
        token_generation_buckets token_generation_batches
        async_mode is_block_kv_layout pa_num_blocks pa_block_size is_prefix_caching
        windowed_context_encoding_size chunked_prefill_config kv_cache_quant kv_quant_config
        disable_kv_cache_tiling k_cache_transposed apply_seq_ids_mask
        quantized quantized_checkpoints_path quantization_type quantization_dtype
        quantization_block_size quantization_block_axis quantization_scale_dtype is_mxfp4_compute
        is_full_model_shuffled modules_to_not_convert draft_model_modules_to_not_convert
        activation_quantization_type quantize_clamp_bound
        speculation_length enable_fused_speculation enable_eagle_speculation is_eagle3
        is_eagle_draft enable_eagle_draft_input_norm eagle_rolling_buffer_kernel_enabled
        token_tree_config is_medusa medusa_speculation_length num_medusa_heads medusa_tree
        trace_tokengen_model
        tp_degree cp_degree mlp_cp_degree attention_dp_degree pp_degree ep_degree world_size
        start_rank_id local_ranks_size sequence_parallel_enabled vocab_parallel
        flash_decoding_enabled weight_gather_seq_len_threshold enable_ve_data_parallel switch_cc
        ep_dispatch_cc_option
        attn_cls attn_kernel_enabled moe_fused_nki_kernel_enabled router_topk_nki_kernel_enabled
        expert_mlp_nki_kernel_enabled shared_mlp_nki_kernel_enabled
        attn_block_tkg_nki_kernel_use_online_softmax fused_qkv qkv_kernel_enabled
        qkv_nki_kernel_enabled qkv_cte_nki_kernel_fuse_rope qkv_kernel_nbsd_layout
        qkv_kernel_fuse_residual_add mlp_kernel_enabled mlp_kernel_fuse_residual_add
        quantized_mlp_kernel_enabled rmsnorm_quantize_kernel_enabled fused_rmsnorm_skip_gamma
        out_proj_kernel_enabled attn_block_tkg_nki_kernel_enabled
        attn_block_tkg_nki_kernel_cache_update attn_block_tkg_nki_kernel_cascaded_attention
        attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb strided_context_parallel_kernel_enabled
        qk_layernorm pre_rope_rmsnorm mlp_tkg_nki_kernel_enabled attn_tkg_nki_kernel_enabled
        attn_tkg_builtin_kernel_enabled attn_block_cte_nki_kernel_enabled
        save_sharded_checkpoint skip_sharding skip_warmup on_cpu
        weights_to_skip_layout_optimization
        logical_nc_config logical_neuron_cores lm_head_pad lm_head_pad_alignment_size
        cc_pipeline_tiling_factor seq_len_threshold_for_cc_tiling target scratchpad_page_size
        dma_order_config enable_spill_reload_dge enable_output_completion_notifications
        disable_numeric_cc_token enable_cte_modular_flow
        lora_config lora_modules lora_ckpt_json target_modules
        capacity_factor glu_mlp glu_type hidden_act_scaling_factor hidden_act_bias
        gate_clamp_upper_limit gate_clamp_lower_limit up_clamp_upper_limit up_clamp_lower_limit
        moe_tp_degree moe_ep_degree hybrid_sharding_config blockwise_matmul_config router_config
        early_expert_affinity_modulation disable_normalize_top_k_affinities fused_shared_experts
        shared_experts_sequence_parallel_enabled transpose_shared_experts_weights
        use_index_calc_kernel moe_mask_padded_tokens return_expert_index return_router_logits
        skip_vision tensor_capture_config tensor_replacement_config layer_boundary_markers
    """,
    "OnDeviceSamplingConfig": """
        do_sample top_k top_p temperature dynamic deterministic global_topk top_k_kernel_enabled
        sampling_dp_degree on_device_sampling_config
    """,
    "LoraServingConfig": """
        max_loras max_lora_rank max_cpu_loras batch_size target_modules lora_bias lora_ckpt_paths
        lora_ckpt_paths_cpu lora_ckpt_json lora_memory_transpose lora_shard_linear_layer
        is_context_encoding dynamic_multi_lora eviction_policy lfu_decay_period
        base_model_quantized enable_base_model_only
    """,
    "ChunkedPrefillConfig": """
        max_num_seqs tkg_model_enabled kernel_q_tile_size kernel_kv_tile_size
    """,
    "KVQuantizationConfig": "k_quant_method v_quant_method quant_dtype direct_cast",
    "HybridShardingConfig": """
        moe_cte_tp_degree moe_cte_ep_degree moe_tkg_tp_degree moe_tkg_ep_degree
    """,
    "neuron_config": """
        num_batched_tokens_buckets num_seqs_buckets kv_segment_size_buckets
        decode_context_length_buckets on_device_sampling_config quantization ep_degree
        apply_prefill_dcp attention_dp_size embedding_dp_size lm_head_dp_size mlp_dp_size
        tensor_capture
    """,
    "neuron_config.on_device_sampling_config": "temperature top_k top_p all_greedy",
    "vision_neuron_config": """
        num_vision_tokens_buckets vision_attention_block_size max_vision_seq_len tp_size dp_size
        encoder_cache_num_blocks encoder_cache_min_hold_time_ms
    """,
    "additional_config": "mm_language_model_only",
}
ROWS = [
    pytest.param(section, field, id=f"{section}.{name}")
    for section, fields in SECTIONS.items()
    for name, field in fields.items()
]


def ask(section, name, value):
    """Give one field in its place."""
    if section == "NeuronConfig":
        return translate(None, {name: value}, {}, {})
    if section == "neuron_config":
        return translate({"neuron_config": {name: value}}, None, {}, {})
    if section == "additional_config":
        return translate({name: value}, None, {}, {})
    if section == "vision_neuron_config":
        return translate({"encoder-neuron-config": {name: value}}, None, {}, {})
    (parent, key), _ = next(item for item in CHILDREN.items() if item[1] == section)
    return ask(parent, key, {name: value})


def other(field):
    """A value of the field's type that is neither its default nor accepted."""
    samples = {
        "int": 7, "count": 7, "float": 0.5, "number": "0.5", "str": "other", "dtype": "float32",
        "sizes": [512], "strings": ["other"], "any": {"other": 1}, "dict": {},
    }  # fmt: skip
    return not field.default if field.kind == "bool" else samples[field.kind]


@pytest.mark.parametrize("section", NAMES)
def test_no_field_is_missing(section):
    assert sorted(SECTIONS[section]) == sorted(NAMES[section].split())


def test_no_section_is_missing():
    assert sorted(SECTIONS) == sorted(NAMES)


@pytest.mark.parametrize(("section", "field"), ROWS)
def test_a_row_says_what_becomes_of_its_field(section, field):
    assert field.note and not field.note.endswith(".")
    assert (field.status == "honoured") == bool(field.option)
    parents = [key for key, child in CHILDREN.items() if child == section]
    is_inside_refused = any(SECTIONS[s][name].status == "refused" for s, name in parents)
    if field.status == "refused" and not is_inside_refused and field.kind != "dict":
        with pytest.raises(ConfigError) as error:
            ask(section, field.name, other(field))
        assert field.name in str(error.value) and field.note in str(error.value)


@pytest.mark.parametrize(("section", "field"), ROWS)
def test_a_refused_field_may_be_given_its_default(section, field):
    if field.status == "refused" and isinstance(field.default, (int, float, str)):
        parents = [SECTIONS[s][n] for (s, n), child in CHILDREN.items() if child == section]
        if not any(parent.status == "refused" for parent in parents):
            ask(section, field.name, field.default)


@pytest.mark.parametrize(("section", "field"), ROWS)
def test_a_wrong_type_is_an_error_that_names_the_key(section, field):
    if field.kind == "any":
        return
    wrong = {"str": 3, "dtype": 3, "strings": "no list", "dict": 3}.get(field.kind, "wrong")
    with pytest.raises(ConfigError, match=field.name):
        ask(section, field.name, wrong)


def test_an_honoured_field_sets_an_option_that_exists():
    options = {field.name for field in dataclasses.fields(Options)}
    for fields in SECTIONS.values():
        for field in fields.values():
            assert field.option in {"", "buckets"} | options


def test_a_field_that_holds_anyway_is_announced_when_asked_for():
    found = ask("NeuronConfig", "fused_qkv", True)
    assert found.options == {}
    assert found.notices == (
        "override_neuron_config.fused_qkv: q, k and v are one packed matrix always",
    )
    assert ask("NeuronConfig", "fused_qkv", False).notices == ()
