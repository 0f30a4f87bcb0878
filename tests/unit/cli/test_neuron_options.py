"""Neuron's names as options: from Python, the command line and the environment."""

from __future__ import annotations

import json

import pytest

from ranvier.cli.neuron import (
    apply_neuron,
    bucket_request,
    equivalent_command,
    explain_nxdi_root,
)
from ranvier.cli.options.flags import Parser, add_engine_arguments, engine_options
from ranvier.cli.options.settings import bucket_lists, environment, parse_options
from ranvier.cli.wire import locate
from ranvier.core.errors import CheckpointError, ConfigError
from ranvier.targets.neuron.config.nxdi import read_nxdi


def parsed(*words):
    parser = Parser()
    add_engine_arguments(parser)
    return engine_options(parser.parse_args(["model", *words]))


def test_python_and_the_command_line_say_the_same():
    override = {"seq_len": 256, "batch_size": 4, "async_mode": True}
    own = parse_options({"model": "model", "override_neuron_config": override})
    assert (own.max_model_len, own.max_num_seqs, own.async_scheduling) == (256, 4, True)
    text = json.dumps(override)
    assert parsed("--override-neuron-config", text) == own
    assert parsed("--override_neuron_config", text.replace("_", "-")).max_model_len == 256


def test_additional_config_carries_both_sections():
    nested = {
        "override-neuron-config": {"seq_len": 256},
        "neuron_config": {"num_seqs_buckets": [1, 2]},
    }
    own = parsed("--additional-config", json.dumps(nested))
    assert (own.max_model_len, own.max_num_seqs) == (256, 2)
    found = bucket_request(own.additional_config, own.override_neuron_config, {})
    assert found.decode_rows.sizes == (1, 2)


def test_what_was_applied_does_not_contradict_itself():
    own = parsed("--override-neuron-config", '{"seq_len": 256}', "--max-model-len", "256")
    again = apply_neuron(vars(own), {}, lambda line: None)
    assert again["max_model_len"] == 256


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ConfigError, match="override_neuron_config must be a JSON object"):
        parsed("--override-neuron-config", text)


def test_a_plain_option_that_differs_is_named():
    with pytest.raises(ConfigError, match="contradicts max_model_len = 512"):
        parsed("--override-neuron-config", '{"seq_len": 256}', "--max-model-len", "512")


def test_auto_is_no_contradiction():
    own = parsed("--override-neuron-config", '{"seq_len": 256}', "--max-model-len", "auto")
    assert own.max_model_len == 256


def test_bucket_variables_are_read():
    lists = bucket_lists({"NEURON_CONTEXT_LENGTH_BUCKETS": "128, 64", "OTHER": "1"})
    assert lists == {"NEURON_CONTEXT_LENGTH_BUCKETS": (128, 64)}
    found = bucket_request(None, None, lists)
    assert found.prefill_tokens.sizes == (64, 128)


@pytest.mark.parametrize("text", ["a", "1,,2", "0", "-1", "1.5", "²"])
def test_a_variable_that_is_no_list_is_named(text):
    with pytest.raises(ConfigError, match="NEURON_TOKEN_GEN_BUCKETS is"):
        bucket_lists({"NEURON_TOKEN_GEN_BUCKETS": text})


@pytest.fixture
def nxdi(tmp_path):
    stored = {
        "seq_len": 256,
        "batch_size": 4,
        "context_encoding_buckets": [64],
        "is_mxfp4_compute": True,
    }
    (tmp_path / "neuron_config.json").write_text(json.dumps({"neuron_config": stored}))
    (tmp_path / "model.pt").write_bytes(b"")
    return tmp_path


def test_from_nxdi_sets_defaults_and_prints_the_same_command(nxdi):
    lines = []
    found = apply_neuron({"model": "m", "from_nxdi": str(nxdi)}, {}, lines.append)
    assert (found["max_model_len"], found["max_num_seqs"]) == (256, 4)
    assert found["override_neuron_config"] == {"context_encoding_buckets": [64]}
    command = equivalent_command(read_nxdi(nxdi), "m")
    assert command == (
        "ranvier serve m --max-model-len 256 --max-num-seqs 4 --override-neuron-config "
        """'{"context_encoding_buckets": [64]}'"""
    )
    assert command in lines[0]
    assert "is_mxfp4_compute = True" in lines[1]


def test_a_compiled_folder_given_as_the_model_is_explained(nxdi):
    with pytest.raises(CheckpointError, match="model.pt is a TorchScript archive") as error:
        locate(str(nxdi))
    assert f"--from-nxdi {nxdi}" in error.value.hint
    assert "--max-model-len 256 --max-num-seqs 4" in error.value.hint
    (nxdi / "config.json").write_text("{}")
    assert locate(str(nxdi)) == nxdi


def test_a_compiled_folder_given_as_artifacts_is_explained(nxdi, tmp_path_factory):
    first, second = explain_nxdi_root(nxdi, "m")
    assert "left as it is" in first and "ranvier serve m --max-model-len 256" in second
    assert explain_nxdi_root(tmp_path_factory.mktemp("none"), "m") == []


def test_given_options_win_over_from_nxdi(nxdi):
    own = parsed("--from-nxdi", str(nxdi), "--max-model-len", "128")
    assert (own.max_model_len, own.max_num_seqs) == (128, 4)
    override = {"batch_size": 2, "context_encoding_buckets": [32]}
    own = parsed("--from-nxdi", str(nxdi), "--override-neuron-config", json.dumps(override))
    assert own.max_num_seqs == 2
    assert own.override_neuron_config["context_encoding_buckets"] == [32]


def test_variables_of_the_plugins_are_taken_or_announced(capsys):
    given = {"VLLM_NEURON_DISABLE_WARMUP_COMPILE": "1", "NEURON_QUANT_DTYPE": "s8"}
    assert environment(["require_artifacts"], given) == {"require_artifacts": "1"}
    assert "NEURON_QUANT_DTYPE has no effect" in capsys.readouterr().err
