"""NxDI's MoENeuronConfig: what it adds for mixtures of experts."""

from __future__ import annotations

from ranvier.targets.neuron.config.field import Field, refused

__all__ = ["EXPERTS", "HYBRID_SHARDING"]

_NOT_YET = "mixtures of experts are not supported yet"

EXPERTS: tuple[Field, ...] = (
    refused("capacity_factor", "float", None, _NOT_YET),
    refused("glu_mlp", "bool", True, _NOT_YET),
    refused("glu_type", "str", "glu", _NOT_YET),
    refused("hidden_act_scaling_factor", "float", 1, _NOT_YET),
    refused("hidden_act_bias", "float", 0, _NOT_YET),
    refused("gate_clamp_upper_limit", "float", None, _NOT_YET),
    refused("gate_clamp_lower_limit", "float", None, _NOT_YET),
    refused("up_clamp_upper_limit", "float", None, _NOT_YET),
    refused("up_clamp_lower_limit", "float", None, _NOT_YET),
    refused("moe_tp_degree", "count", 1, _NOT_YET),
    refused("moe_ep_degree", "count", 1, _NOT_YET),
    refused("hybrid_sharding_config", "dict", None, _NOT_YET),
    refused("blockwise_matmul_config", "any", {}, _NOT_YET),
    refused("router_config", "any", None, _NOT_YET),
    refused("early_expert_affinity_modulation", "bool", False, _NOT_YET),
    refused("disable_normalize_top_k_affinities", "bool", False, _NOT_YET),
    refused("fused_shared_experts", "bool", False, _NOT_YET),
    refused("shared_experts_sequence_parallel_enabled", "bool", False, _NOT_YET),
    refused("transpose_shared_experts_weights", "bool", False, _NOT_YET),
    refused("use_index_calc_kernel", "bool", False, _NOT_YET),
    refused("moe_mask_padded_tokens", "bool", False, _NOT_YET),
    refused("return_expert_index", "bool", False, _NOT_YET),
    refused("return_router_logits", "bool", False, _NOT_YET),
)

HYBRID_SHARDING: tuple[Field, ...] = (
    refused("moe_cte_tp_degree", "count", 1, _NOT_YET),
    refused("moe_cte_ep_degree", "count", 1, _NOT_YET),
    refused("moe_tkg_tp_degree", "count", 1, _NOT_YET),
    refused("moe_tkg_ep_degree", "count", 1, _NOT_YET),
)
