"""The ways in: spellings, merging, precedence, conflicts, and what comes out."""

from __future__ import annotations

import pytest

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.read import merge
from ranvier.targets.neuron.config.translate import translate


def fails(match, additional=None, override=None, plain=None, listed=None):
    with pytest.raises(ConfigError, match=match):
        translate(additional, override, plain or {}, listed or {})


def test_merging_is_deep_and_lists_are_replaced_whole():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "e-f": 2}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e_f": 2}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_hyphens_and_underscores_are_alike_at_every_depth():
    given = {"override-neuron-config": {"on-device-sampling-config": {"top-k": 5}, "seq-len": 64}}
    found = translate(given, None, {}, {}).options
    assert found == {"max_model_len": 64, "override_generation_config": {"top_k": 5}}


def test_the_argument_wins_over_additional_config_key_by_key():
    additional = {
        "override_neuron_config": {
            "seq_len": 64, "on_device_sampling_config": {"top_k": 5, "top_p": 0.5},
        }
    }  # fmt: skip
    found = translate(additional, {"on_device_sampling_config": {"top_k": 9}}, {}, {})
    assert found.options["max_model_len"] == 64
    assert found.options["override_generation_config"] == {"top_k": 9, "top_p": 0.5}


def test_every_plain_mapping():
    found = translate(
        None,
        {
            "batch_size": 4, "tkg_batch_size": 4, "seq_len": 256, "max_context_length": 128,
            "torch_dtype": "torch.bfloat16", "pa_block_size": 32, "pa_num_blocks": 40,
            "is_prefix_caching": False, "async_mode": True, "tp_degree": 1, "target": "trn2",
        },
        {},
        {},
    )  # fmt: skip
    assert found.options == {
        "max_num_seqs": 4, "max_model_len": 256, "max_num_batched_tokens": 128,
        "dtype": "bfloat16", "block_size": 32, "num_gpu_blocks_override": 40,
        "enable_prefix_caching": False, "async_scheduling": True, "tensor_parallel_size": 1,
        "target": "neuron-trn2",
    }  # fmt: skip


def test_nothing_given_changes_nothing():
    found = translate(None, {}, {"max_model_len": 5}, {})
    assert (found.options, found.notices) == ({}, ())
    assert found.buckets.prefill_tokens is None and not found.buckets.single


def test_equal_values_by_two_names_are_taken():
    found = translate(None, {"seq_len": 256}, {"max_model_len": 256, "dtype": "auto"}, {})
    assert found.options == {"max_model_len": 256}
    translate(None, {"torch_dtype": "bf16"}, {"dtype": "bfloat16"}, {})


@pytest.mark.parametrize(
    ("override", "plain", "message"),
    [
        ({"seq_len": 256}, {"max_model_len": 512}, "seq_len = 256: contradicts max_model_len"),
        ({"torch_dtype": "float32"}, {"dtype": "bfloat16"}, "contradicts dtype = 'bfloat16'"),
        ({"seq_len": 256, "n_positions": 128}, {}, "n_positions = 128: contradicts .*seq_len"),
        ({"is_prefix_caching": False}, {"enable_prefix_caching": True}, "contradicts enable"),
    ],
)  # fmt: skip
def test_contradictions_name_both(override, plain, message):
    fails(message, override=override, plain=plain)


@pytest.mark.parametrize(
    ("additional", "override", "message"),
    [
        ({"override_neuron_confg": {}}, None, "no key of additional_config"),
        ({"fused_qkv": True}, None, "It is a key of NeuronConfig"),
        ({"neuron_config": {"seq_len": 5}}, None, "It is a key of NeuronConfig"),
        (None, {"num_seqs_buckets": [1]}, "It is a key of neuron_config"),
        (None, {"seq_length": 5}, "Did you mean seq_len"),
        (None, {"on_device_sampling_config": {"topk": 5}}, r"sampling_config.topk .*Did you mean"),
        (None, {"top_k": 5}, "It is a key of OnDeviceSamplingConfig"),
        ({"neuron_config": 5}, None, "must be a dictionary"),
        (None, [1], "must be a dictionary"),
        (None, {"lora_config": {"max_lora": 4}}, "Did you mean max_loras"),
        (None, {"lora_config": {"lora_bias": "all"}}, "an adapter's bias is not supported"),
        (None, {"seq_len": 0}, "positive integer"),
        (None, {"seq_len": 8, "seq-len": 9}, "seq_len = 9: is given twice, with - and with _"),
        (None, {"seq_len": True}, "positive integer"),
        (None, {"buckets": []}, "list of positive integers"),
        (None, {"buckets": [0]}, "list of positive integers"),
        ({"vision_neuron_config": {"dp_size": 2}}, None, "an encoder takes one picture at a time"),
        ({"vision_neuron_config": {"num_vision_tokens_buckets": []}}, None, "list of positive"),
    ],
)
def test_wrong_input_is_named(additional, override, message):
    fails(message, additional, override)


@pytest.mark.parametrize(
    ("section", "sampling"),
    [
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 50}, {"temperature": 0.7, "top_k": 50}),
        ({"dynamic": True, "deterministic": False}, None),
    ],
)
def test_on_device_sampling_sets_the_defaults_of_requests(section, sampling):
    found = translate(None, {"on_device_sampling_config": section}, {}, {})
    assert found.options.get("override_generation_config") == sampling


def test_the_plugins_sampling_takes_text_and_all_greedy():
    for section in ({"temperature": "0"}, {"all_greedy": True}):
        additional = {"neuron_config": {"on_device_sampling_config": section}}
        found = translate(additional, None, {}, {}).options
        assert found == {"override_generation_config": {"temperature": 0.0}}


def test_an_own_generation_override_wins():
    override = {"on_device_sampling_config": {"top_k": 5, "top_p": 0.5}}
    plain = {"override_generation_config": {"top_k": 9}}
    found = translate(None, override, plain, {}).options
    assert found["override_generation_config"] == {"top_k": 9, "top_p": 0.5}


def test_lists_find_their_axis_sorted_with_a_notice():
    override = {
        "context_encoding_buckets": [256, 128], "token_generation_buckets": [512],
        "token_generation_batches": [1, 2], "prefix_buckets": [64], "buckets": [128],
    }  # fmt: skip
    found = translate(None, override, {}, {"NEURON_TOKEN_GEN_BUCKETS": (64,)})
    own = found.buckets
    assert own.prefill_tokens.sizes == (128, 256)
    assert own.prefill_tokens.key == "override_neuron_config.context_encoding_buckets"
    assert (own.decode_rows.sizes, own.contexts.sizes, own.prefixes.sizes) == (
        (1, 2), (512,), (64,)
    )  # fmt: skip
    assert "context_encoding_buckets is sorted to [128, 256]" in found.notices[0]
    assert any("NEURON_TOKEN_GEN_BUCKETS is not used" in n for n in found.notices)


def test_variables_and_the_general_list_fill_what_is_left():
    found = translate(None, {"buckets": [128]}, {}, {}).buckets
    assert found.prefill_tokens.sizes == found.contexts.sizes == (128,)
    listed = {"NEURON_CONTEXT_LENGTH_BUCKETS": (64, 128)}
    found = translate(None, None, {}, listed).buckets
    assert found.prefill_tokens.sizes == (64, 128) and found.contexts is None


def test_two_dialects_that_differ_are_an_error():
    fails(
        "num_seqs_buckets = .*contradicts override_neuron_config.token_generation_batches",
        {"neuron_config": {"num_seqs_buckets": [1, 4]}},
        {"token_generation_batches": [1, 2]},
    )


def test_the_plugins_row_buckets_set_the_rows():
    found = translate({"neuron_config": {"num_seqs_buckets": [1, 4]}}, None, {}, {})
    assert found.options == {"max_num_seqs": 4}


def test_enable_bucketing_false_names_its_key():
    found = translate(None, {"enable_bucketing": False}, {}, {}).buckets
    assert found.single == "override_neuron_config.enable_bucketing"


def test_a_value_too_long_to_show_is_cut():
    with pytest.raises(ConfigError) as error:
        translate(None, {"fused_qkv": list(range(10_000))}, {}, {})
    assert len(error.value.message) < 300


def test_bottomless_nesting_is_refused():
    deep = {}
    for _ in range(5000):
        deep = {"lora_config": deep}
    fails("nested deeper", override=deep)
    fails("nested deeper", additional={"neuron_config": deep})


@pytest.mark.parametrize("section", ["vision_neuron_config", "encoder_neuron_config"])
def test_vision_buckets_are_the_encoders(section):
    found = translate({section: {"num_vision_tokens_buckets": [4096, 1024]}}, None, {}, {})
    assert found.buckets.pictures.sizes == (1024, 4096)
    assert found.buckets.pictures.key == f"{section}.num_vision_tokens_buckets"


@pytest.mark.parametrize(
    ("additional", "override"),
    [({"mm_language_model_only": True}, None), (None, {"skip_vision": True})],
)
def test_a_text_only_build_allows_no_pictures(additional, override):
    assert translate(additional, override, {}, {}).options["limit_mm_per_prompt"] == {"image": 0}


def test_a_build_with_its_encoder_says_nothing_of_pictures():
    found = translate({"mm_language_model_only": False}, {"skip_vision": False}, {}, {})
    assert "limit_mm_per_prompt" not in found.options
