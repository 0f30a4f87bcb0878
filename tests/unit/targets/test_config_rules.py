"""Every cross-field rule shows its message: the key, the value, the limit, what to do."""

from __future__ import annotations

import pytest

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.rules import PLUGIN_RULES, RULES
from ranvier.targets.neuron.config.translate import translate

BLOCK = "attn_block_tkg_nki_kernel_enabled"

# One line a rule, in the order of the table: what is given, plain options, what the message says.
CASES = [
    (
        {"max_context_length": 512, "seq_len": 256},
        {},
        "max_context_length = 512: a prefill is at most max_length (256)",
    ),
    (
        {"context_encoding_buckets": [64, 512], "max_context_length": 256},
        {},
        "[64, 512]: the largest is at most max_context_length (256)",
    ),
    (
        {"token_generation_buckets": [512]},
        {"max_model_len": 256},
        "[512]: the largest is at most max_length (256)",
    ),
    (
        {"buckets": [128, 1024], "seq_len": 512},
        {},
        "buckets = [128, 1024]: the largest is at most max_length (512)",
    ),
    (
        {"prefix_buckets": [512], "seq_len": 512},
        {},
        "prefix_buckets = [512]: the largest is below max_length (512)",
    ),
    (
        {"prefix_buckets": [64], "is_prefix_caching": False},
        {},
        "prefix buckets need is_prefix_caching",
    ),
    (
        {"token_generation_batches": [1, 8], "batch_size": 4},
        {},
        "[1, 8]: the largest is at most tkg_batch_size (4)",
    ),
    (
        {"token_generation_batches": [1], "speculation_length": 4},
        {},
        "batch buckets exclude speculation",
    ),
    (
        {"enable_bucketing": False, "buckets": [64, 128]},
        {},
        "enable_bucketing = False: one bucket an axis",
    ),
    (
        {"attention_dtype": "float32", "torch_dtype": "bfloat16"},
        {},
        "a type other than torch_dtype (bfloat16) needs cast_type",
    ),
    ({"cp_degree": 3, "tp_degree": 8}, {}, "cp_degree = 3: it has to divide tp_degree (8)"),
    ({"mlp_cp_degree": 2}, {}, "above 1 it needs sequence_parallel_enabled"),
    (
        {"attention_dp_degree": 3, "tp_degree": 8},
        {},
        "attention_dp_degree = 3: it has to divide tp_degree (8)",
    ),
    (
        {"attention_dp_degree": 2, "tp_degree": 2, "batch_size": 3},
        {},
        "it has to divide tkg_batch_size (3)",
    ),
    (
        {"attention_dp_degree": 4, "cp_degree": 2, "tp_degree": 8},
        {},
        "it has to divide cp_degree (2)",
    ),
    (
        {"attention_dp_degree": 2, "tp_degree": 2, "is_continuous_batching": False},
        {},
        "above 1 it needs is_continuous_batching",
    ),
    (
        {"strided_context_parallel_kernel_enabled": True},
        {},
        "the strided kernel needs cp_degree above 1",
    ),
    (
        {"ep_dispatch_cc_option": "RS_AG", "tp_degree": 8, "batch_size": 4},
        {},
        "RS_AG needs tp_degree (8) of at most tkg_batch_size (4)",
    ),
    ({"world_size": 3, "tp_degree": 2}, {}, "world_size = 3: it is the product of tp_degree (2)"),
    (
        {"logical_nc_config": 3, "target": "trn2"},
        {},
        "logical_nc_config = 3: the target's logical cores are of (1, 2) physical ones",
    ),
    (
        {"logical_neuron_cores": 2},
        {"target": "neuron-inf2"},
        "logical_neuron_cores = 2: the target's logical cores are of (1,) physical ones",
    ),
    ({"quantized": True}, {}, "quantized weights need quantized_checkpoints_path"),
    (
        {"activation_quantization_type": "dynamic", "mlp_kernel_enabled": True},
        {},
        "quantised activations exclude the MLP kernels",
    ),
    ({"rmsnorm_quantize_kernel_enabled": True}, {}, "it needs quantized_mlp_kernel_enabled"),
    (
        {"chunked_prefill_config": {"max_num_seqs": 4}, "is_block_kv_layout": False},
        {},
        "chunked prefill needs is_block_kv_layout",
    ),
    ({"k_cache_transposed": True, "is_block_kv_layout": True}, {}, "transposed K excludes"),
    (
        {BLOCK: True, "flash_decoding_enabled": True, "qkv_kernel_enabled": True},
        {},
        "excludes flash decoding and chunked prefill",
    ),
    ({BLOCK: True}, {}, "the block decode kernel needs a QKV kernel"),
    ({"is_medusa": True, "async_mode": True}, {}, "Medusa excludes async_mode"),
    (
        {"async_mode": True, "speculation_length": 4},
        {},
        "speculation with async_mode has to be fused",
    ),
    (
        {"enable_eagle_speculation": True, "enable_fused_speculation": False},
        {},
        "EAGLE is fused speculation",
    ),
    ({"tensor_capture_config": {"a": 1}}, {}, "capturing tensors needs on_device_sampling_config"),
]
PLUGIN_CASES = [
    (
        {"num_batched_tokens_buckets": [128, 256]},
        {"max_num_batched_tokens": 512},
        "the largest equals max_num_batched_tokens (512)",
    ),
    ({"num_seqs_buckets": [1, 4]}, {"max_num_seqs": 8}, "the largest equals max_num_seqs (8)"),
    (
        {"decode_context_length_buckets": [512]},
        {"max_model_len": 512},
        "each is below max_model_len (512)",
    ),
    ({"decode_context_length_buckets": [100]}, {}, "each is a multiple of 128"),
    (
        {"kv_segment_size_buckets": [100], "num_batched_tokens_buckets": [100]},
        {"block_size": 20},
        "it holds one of (512,",
    ),
    (
        {"kv_segment_size_buckets": [512], "num_batched_tokens_buckets": [512]},
        {"block_size": 96},
        "it is a multiple of block_size (96)",
    ),
    ({"kv_segment_size_buckets": [512]}, {}, "it equals num_batched_tokens_buckets"),
]


def message(additional, override, plain):
    with pytest.raises(ConfigError) as error:
        translate(additional, override, plain, {})
    return error.value.message


def test_every_rule_has_a_case():
    assert len(CASES) == len(RULES)
    assert len(PLUGIN_CASES) == len(PLUGIN_RULES)


@pytest.mark.parametrize(("given", "plain", "text"), CASES, ids=lambda v: str(v)[:60])
def test_a_broken_rule_says_key_value_limit_and_fix(given, plain, text):
    rule = RULES[next(i for i, case in enumerate(CASES) if case[2] == text)]
    found = message(None, given, plain)
    assert text in found and rule.fix in found
    key = next(k for k in rule.keys if k in given)
    assert f"override_neuron_config.{key} = " in found


@pytest.mark.parametrize(("given", "plain", "text"), PLUGIN_CASES, ids=lambda v: str(v)[:60])
def test_a_broken_rule_of_the_plugin_says_so(given, plain, text):
    rule = PLUGIN_RULES[next(i for i, case in enumerate(PLUGIN_CASES) if case[2] == text)]
    found = message({"neuron_config": given}, None, plain)
    assert text in found and rule.fix in found
    assert f"neuron_config.{rule.keys[0]} = " in found


@pytest.mark.parametrize(
    "given",
    [
        {"max_context_length": 256, "seq_len": 256, "context_encoding_buckets": [256]},
        {"token_generation_buckets": [128, 256], "seq_len": 256, "batch_size": 4},
        {"token_generation_batches": [1, 4], "batch_size": 4},
        {"enable_bucketing": False, "buckets": [128]},
        {"attention_dtype": None, "torch_dtype": "float32"},
        {"world_size": 4, "tp_degree": 4},
        {"logical_nc_config": 2, "target": "trn2"},
        {"logical_nc_config": 1, "target": "trn2"},
        {"logical_nc_config": 2},
        {"prefix_buckets": [64], "is_prefix_caching": True, "seq_len": 128},
        {BLOCK: True, "qkv_kernel_enabled": True},
    ],
)
def test_what_keeps_the_rules_is_taken(given):
    translate(None, given, {}, {})


def test_all_problems_are_reported_at_once():
    found = message(
        {"neuron_config": {"num_seqs_bucket": [4]}},
        {"seq_len": 256, "max_context_length": 512, "buckets": "128", "fused_qvk": True},
        {"max_model_len": 512},
    )
    assert "5 settings are wrong" in found
    for text in ("num_seqs_buckets?", "fused_qkv?", "must be a list", "max_length (256)"):
        assert text in found
    assert "seq_len = 256: contradicts max_model_len = 512" in found
