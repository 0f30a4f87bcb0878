"""Options: every source, their order, and no name or value without an answer."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.cli.options import settings
from ranvier.cli.options.dotted import gather_dotted
from ranvier.cli.options.flags import (
    Parser,
    add_engine_arguments,
    add_option_arguments,
    engine_options,
    given_for,
)
from ranvier.cli.options.front import FrontOptions
from ranvier.cli.options.known import ENVIRONMENT, KNOWN
from ranvier.cli.options.settings import Options, environment, option_names, parse_options
from ranvier.cli.options.values import parse_size
from ranvier.core.errors import ConfigError


def parsed(*words):
    parser = Parser(prog="ranvier serve")
    add_engine_arguments(parser)
    add_option_arguments(parser, FrontOptions, "server")
    return parser.parse_args(words)


def options(*words):
    return engine_options(parsed("m", *words))


@pytest.mark.parametrize(
    ("text", "number"),
    [("4096", 4096), ("1k", 1000), ("1K", 1024), ("25.6k", 25600), ("2M", 2**21), ("1g", 10**9),
     ("1.5T", 3 * 2**39), ("auto", -1), ("-1", -1)],
)  # fmt: skip
def test_sizes_are_read_as_vllm_reads_them(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "k", "1kk", "1.5", "x", "1e3", "nank", "0x10", "infK"])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(ConfigError, match="no whole number"):
        parse_size(text)


@given(st.text(max_size=6))
def test_any_text_is_a_size_or_an_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_size(text), int)


def test_flags_take_dashes_underscores_equals_and_no():
    found = options("--max_model_len=8k", "--max-num-seqs", "4", "--no-enable-prefix-caching")
    assert (found.max_model_len, found.max_num_seqs) == (8000, 4)
    assert found.enable_prefix_caching is False
    assert options("--max-model-len", "auto").max_model_len == -1
    assert options("--max-model-len", "-1").max_model_len == -1


def test_the_command_line_python_and_a_config_file_give_the_same_options(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("max-model-len: 2k\nmax_num_seqs: 8\nhf-overrides: {rope_theta: 5}\nmodel: m\n")
    by_file = engine_options(parsed("--config", str(file)))
    by_flag = options(
        "--max-model-len", "2k", "--max-num-seqs", "8", "--hf-overrides.rope_theta", "5"
    )
    by_python = parse_options(
        {"model": "m", "max_model_len": 2000, "max_num_seqs": 8, "hf_overrides": {"rope_theta": 5}}
    )
    assert by_file == by_flag == by_python


def test_order_of_sources(tmp_path, monkeypatch):
    file = tmp_path / "c.yaml"
    file.write_text("block_size: 64\n")
    monkeypatch.setenv("RANVIER_BLOCK_SIZE", "96")
    monkeypatch.setenv("RANVIER_SEED", "5")
    assert options().block_size == 96
    assert options("--config", str(file)).block_size == 64
    assert options("--config", str(file), "--block-size", "128").block_size == 128
    assert options().seed == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_model_length: 5\n", r"c\.yaml, line 1: unknown option 'max_model_length'.*max_model"),
        ("seed: 1\n\nprot: 5\n", r"line 3: unknown option 'prot'.*Did you mean port"),
        ("seed: [1, 2]\n", "seed must be a whole number"),
        ("- a\n", "must hold options by name"),
        ("a: [\n", "no valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']\n", "no valid YAML"),
        ("[" * 5000, "no valid YAML|must hold"),
    ],
)
def test_a_wrong_config_file_is_an_error_that_names_the_place(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        options("--config", str(file))


def test_a_missing_config_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing.yaml"):
        options("--config", str(tmp_path / "nothing.yaml"))


def test_the_environment_sets_front_options_too(monkeypatch):
    monkeypatch.setenv("RANVIER_PORT", "9000")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert given_for(parsed("m"), FrontOptions) == {"port": 9000, "api_key": ("secret",)}


def test_vllm_variables_are_announced(capsys):
    found = environment(
        option_names(Options), {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_BATCH_INVARIANT": "1"}
    )
    assert found == {"kv_cache_memory_bytes": "4G"}
    said = capsys.readouterr().err
    assert "kv_cache_memory_bytes is taken from VLLM_CPU_KVCACHE_SPACE" in said
    assert "VLLM_BATCH_INVARIANT has no effect" in said


def test_our_variable_wins_over_vllms():
    variables = {"VLLM_CPU_KVCACHE_SPACE": "4", "RANVIER_KV_CACHE_MEMORY_BYTES": "1G"}
    assert environment(option_names(Options), variables) == {"kv_cache_memory_bytes": "1G"}


def test_an_unknown_variable_of_ours_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean RANVIER_MAX_MODEL_LEN"):
        environment([], {"RANVIER_MAX_MODEL_LENGTH": "1"})


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_known_option_of_vllm_is_announced_or_refused(name, capsys):
    known = KNOWN[name]
    if known.accepted is None or known.accepted:
        value = True if known.accepted is None else known.accepted[0]
        assert parse_options({"model": "m", name: value}) == Options(model="m")
        assert f"{name}={value} changes nothing: {known.reason}" in capsys.readouterr().err
    if known.accepted is not None:
        with pytest.raises(ConfigError, match=f"{name}='other'.*not supported"):
            parse_options({"model": "m", name: "other"})


def test_known_options_are_flags_too(capsys):
    found = options("--enforce-eager", "--swap-space", "4", "--pipeline-parallel-size", "1")
    assert found == Options(model="m")
    assert capsys.readouterr().err.count("changes nothing") == 2
    with pytest.raises(ConfigError, match="kv_transfer_config.*is not supported"):
        options("--kv-transfer-config", "{}")
    with pytest.raises(ConfigError, match="enable_chunked_prefill=False is not supported"):
        options("--no-enable-chunked-prefill")


def test_no_option_is_in_two_tables():
    assert not set(KNOWN) & set(option_names(Options))
    targets = {target for target, _ in ENVIRONMENT.values() if target}
    assert targets <= {*option_names(Options, FrontOptions), "cache_root"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_model_length": 5}, "Unknown option 'max_model_length'. Did you mean max_model_len?"),
        ({"enforce_egaer": True}, "Did you mean enforce_eager?"),
        ({"max_num_seqs": 0}, "max_num_seqs must be a positive integer"),
        ({"max_num_seqs": True}, "max_num_seqs must be a whole number"),
        ({"max_num_seqs": 1.5}, "max_num_seqs must be a whole number"),
        ({"max_model_len": -2}, "max_model_len must be a positive integer"),
        ({"enable_prefix_caching": 3}, "enable_prefix_caching must be true or false"),
        ({"hf_overrides": "[1]"}, "hf_overrides must be a JSON object"),
        ({"hf_overrides": [1]}, "hf_overrides must be a JSON object"),
        ({"gpu_memory_utilization": 1.5}, r"in \(0, 1\]"),
        ({"gpu_memory_utilization": "nan"}, "gpu_memory_utilization must be a number"),
        ({"block_size": 16}, "multiple of 32"),
        ({"dtype": "float16"}, "supported: auto, bfloat16"),
        ({"seed": -1}, "seed must be in"),
        ({"num_gpu_blocks_override": 5, "kv_cache_memory_bytes": 5}, "not both"),
    ],
)
def test_a_wrong_option_is_an_error_by_name(given, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_options({"model": "m", **given})


def test_json_options_by_parts():
    words = ["m", "--a.b", "1", "--a.c.d=x", "--a.l+", "1,2", "--a.l+=three", "--n", "v.w"]
    assert gather_dotted(words) == [
        "m", "--n", "v.w", "--a", '{"b": 1, "c": {"d": "x"}, "l": [1, 2, "three"]}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--a.b"], "needs a value"),
        (["--a.b", "1", "--a.b.c", "2"], "value of its own"),
        (["--a.b", "1", "--a.b", "2"], "given twice"),
        (["--a", "{}", "--a.b", "2"], "use one form"),
    ],
)
def test_parts_that_contradict_are_errors(words, message):
    with pytest.raises(ConfigError, match=message):
        gather_dotted(words)


def test_two_models_are_an_error():
    with pytest.raises(ConfigError, match="Two models"):
        engine_options(parsed("m", "--model", "n"))
    assert engine_options(parsed("--model", "n")).model == "n"


def test_every_option_is_explained():
    from ranvier.cli.options.flags import field_docs

    for kind in (Options, FrontOptions):
        assert set(field_docs(kind)) == {field.name for field in dataclasses.fields(kind)}


def test_artifacts_lie_beside_the_model_or_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("NEURON_COMPILED_ARTIFACTS", raising=False)
    monkeypatch.setenv("RANVIER_CACHE_ROOT", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    cache = tmp_path / "cache" / "neuron-compiled-artifacts"
    beside = model / "neuron-compiled-artifacts"
    named = Options(model="m", artifacts=str(tmp_path / "x"))
    assert settings.artifact_roots(Options(model="m"), model) == [beside]
    assert settings.artifact_roots(Options(model="m"), model / "m.gguf") == [beside]
    assert settings.artifact_roots(named, model) == [tmp_path / "x"]
    monkeypatch.setattr(settings.os, "access", lambda *_: False)
    assert settings.artifact_roots(Options(model="m"), model) == [cache, beside]
    assert settings.artifact_roots(named, model) == [cache, tmp_path / "x"]
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", "/y")
    assert settings.artifact_roots(Options(model="m"), model)[-1].as_posix() == "/y"


def test_help_lists_every_option():
    parser = Parser(prog="ranvier serve")
    add_engine_arguments(parser)
    text = parser.format_help()
    for name in option_names(Options):
        assert "--" + name.replace("_", "-") in text
    assert isinstance(parser, argparse.ArgumentParser)
