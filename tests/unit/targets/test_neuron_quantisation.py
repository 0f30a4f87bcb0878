"""NxDI's quantisation fields: each documented value gives its scheme, or is refused by name."""

from __future__ import annotations

import pytest

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.quantisation import NeuronQuantisation, neuron_quantisation
from ranvier.weights.quantise.scheme import parse_scheme

ON = {"quantized": True, "quantized_checkpoints_path": "/models/int8"}


def test_nothing_is_quantised_by_default():
    assert neuron_quantisation({}) == NeuronQuantisation()
    assert neuron_quantisation({"quantization_dtype": "f8e4m3"}) == NeuronQuantisation()


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ({}, "int8"),
        ({"quantization_type": "per_channel_symmetric"}, "int8"),
        ({"quantization_dtype": "f8e4m3"}, "fp8-tensor"),
        (
            {"quantization_dtype": "f8e4m3", "quantization_type": "per_channel_symmetric"},
            "fp8-channel",
        ),
    ],
)
def test_documented_values_give_schemes(fields, scheme):
    found = neuron_quantisation({**ON, **fields})
    assert (found.scheme, found.folder) == (scheme, "/models/int8")
    parse_scheme(found.scheme)


def test_blocks_are_what_the_folder_stores():
    blocks = {"quantization_type": "blockwise_symmetric", "quantization_block_size": [128, 128]}
    found = neuron_quantisation({**ON, **blocks, "quantization_dtype": "f8e4m3"})
    assert (found.scheme, found.folder) == (None, "/models/int8")


def test_modules_to_leave_dense():
    assert neuron_quantisation({**ON, "modules_to_not_convert": ["lm_head"]}).ignore == ("lm_head",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantized_checkpoints_path": None}, "quantized needs quantized_checkpoints_path"),
        ({"quantization_type": "per_chanel_symmetric"}, "Did you mean per_channel_symmetric"),
        ({"quantization_type": "per_key_symmetric"}, "'per_key_symmetric' is not supported"),
        ({"quantization_dtype": "f8e5m2"}, "'f8e5m2' with quantization_type"),
        ({"quantization_dtype": "mxfp4"}, "'mxfp4' with quantization_type"),
        ({"quantization_block_size": [128, 128]}, "per_tensor_symmetric has no blocks"),
        ({"quantization_type": "blockwise_symmetric"}, "block_size is None with int8"),
        ({"modules_to_not_convert": "lm_head"}, "must be a list of modules' names"),
    ],
)
def test_the_rest_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        neuron_quantisation({**ON, **fields})
