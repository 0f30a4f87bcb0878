"""Compiling for Neuron on this machine: report, artifact, driver, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.engine.test_pictures_llm import PROCESSOR, tokenizer
from tests.parity.vision_cases import GOLDENS

import ranvier
from ranvier.artifact.read import read_manifest, verify
from ranvier.cli.main import main
from ranvier.core.errors import ArtifactError, ConfigError, TargetError
from ranvier.runtime.load import load_runner

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "data" / "configs"
ONE_BUCKET = {"override_neuron_config": {"enable_bucketing": False}}
NAMES = ["decode.r4.c128", "prefill.t32.c128"]


@pytest.fixture(scope="module")
def options(tiny_options, tmp_path_factory):
    root = tmp_path_factory.mktemp("neuron")
    return {**tiny_options, **ONE_BUCKET, "artifacts": str(root), "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def built(options):
    return ranvier.compile(target="neuron-trn2", instance="trn2.48xlarge", **options)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """neuronx-cc's stand-in on the PATH; the list of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "neuronx-cc"
    script.write_text(f"#!{sys.executable}\n" + (HERE / "neuronx_cc.py").read_text())
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "calls").touch()
    return lambda: (tmp_path / "calls").read_text().splitlines()


def copy(built, tmp_path):
    folder = tmp_path / built.path.name
    shutil.copytree(built.path, folder)
    return folder


def test_the_report_says_what_fits_and_what_is_missing(built):
    report = built.report
    assert report["target"] == "neuron-trn2"
    assert report["fits"] is True
    assert report["memory"]["total_bytes"] == sum(r["bytes"] for r in report["memory"]["rows"])
    assert sorted(p["name"] for p in report["programs"]) == NAMES
    for program in report["programs"]:
        assert program["violations"] == []
        assert program["bytes"] > 1000
        assert program["missing"] == [f"programs/{program['name']}.neff"]
    assert report["complete"] == f"ranvier compile --finish {built.path}"


def test_the_artifact_is_whole_but_for_the_binaries(built):
    manifest = read_manifest(built.path)
    assert verify(built.path) == []
    assert list(manifest.missing) == [f"programs/{name}.neff" for name in NAMES]
    assert "ranvier compile --finish" in manifest.completed_by
    names = {f"programs/{name}.{suffix}" for name in NAMES for suffix in ("stablehlo", "hlo.pb")}
    assert names <= set(manifest.files)
    assert manifest.arrays


def test_a_model_that_sees_has_its_weights_a_core_and_how_pictures_are_prepared(tmp_path):
    folder = tmp_path / "llava"
    shutil.copytree(GOLDENS / "llava", folder)
    (folder / "tokenizer.json").write_text(tokenizer())
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    built = ranvier.compile(
        str(folder), target="neuron-trn2", instance="trn2.48xlarge", max_model_len=128,
        max_num_seqs=4, artifacts=str(tmp_path / "artifacts"), tensor_parallel_size=2,
        **ONE_BUCKET,
    )  # fmt: skip
    manifest = read_manifest(built.path)
    assert {"weights.r0.bin", "weights.r1.bin"} <= set(manifest.files)
    assert all(name.endswith(".neff") for name in manifest.missing)
    assert manifest.arrays["vision.qkv"].shape[2] == 3 * 32 // 2
    assert verify(built.path) == []
    kept = json.loads((built.path / "text/preprocessor_config.json").read_text())
    assert kept == PROCESSOR
    assert "text/preprocessor_config.json" in manifest.files


def test_an_incomplete_artifact_is_refused_with_the_command(built):
    with pytest.raises(ArtifactError, match="has no binary of") as caught:
        load_runner(built.path, [])
    assert "ranvier compile --finish" in caught.value.hint


def test_finish_without_a_compiler_says_so(built, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["compile", "--finish", str(built.path)]) == TargetError.exit_code


def test_finish_compiles_what_is_missing_once(built, tmp_path, compiler):
    folder = copy(built, tmp_path)
    assert main(["compile", "--finish", str(folder)]) == 0
    manifest = read_manifest(folder)
    assert (manifest.missing, manifest.completed_by) == ({}, "")
    assert verify(folder) == []
    calls = compiler()
    assert sorted(call.split()[0] for call in calls) == NAMES
    for call in calls:
        level = "1" if call.startswith("prefill") else "2"
        assert "--target trn2 --output" in call
        assert call.endswith(f"--optlevel {level} --auto-cast none --logical-nc-config 2")
    assert main(["compile", "--finish", str(folder)]) == 0
    assert len(compiler()) == 2


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("NCC_EOOM001", "exceed the core's HBM"),
        ("NCC_EVRF001", "operator"),
        ("killed", "ran out of memory"),
        ("silent", "wrote no NEFF"),
    ],
)
def test_a_failing_program_is_named_and_explained_and_the_rest_is_kept(
    built, tmp_path, compiler, monkeypatch, capsys, failure, told
):
    folder = copy(built, tmp_path)
    monkeypatch.setenv("FAIL", f"{NAMES[0]}={failure}")
    assert main(["compile", "--finish", str(folder)]) == TargetError.exit_code
    error = capsys.readouterr().err
    assert f"1 of 2 programs did not compile: {NAMES[0]}" in error
    assert told in error
    assert list(read_manifest(folder).missing) == [f"programs/{NAMES[0]}.neff"]
    assert verify(folder) == []
    monkeypatch.setenv("FAIL", "")
    assert main(["compile", "--finish", str(folder)]) == 0
    assert [call.split()[0] for call in compiler()].count(NAMES[1]) == 1


def test_with_a_compiler_at_hand_nothing_is_missing(options, tmp_path, compiler):
    given = {**options, "artifacts": str(tmp_path / "root")}
    done = ranvier.compile(target="neuron-inf2", instance="inf2.xlarge", **given)
    assert done.report["missing"] == {}
    assert all("--target inf2" in call and call.endswith("config 1") for call in compiler())


def test_dry_run_writes_nothing_and_prints_one_document(options, tmp_path, capsys):
    single = json.dumps(ONE_BUCKET["override_neuron_config"])
    words = ["compile", options["model"], "--target", "neuron-trn2", "--instance", "trn2.48xlarge",
             "--artifacts", str(tmp_path / "none"), "--dry-run", "--json", "--max-model-len", "128",
             "--max-num-seqs", "4", "--override-neuron-config", single]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert report["artifact"] is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "cores", "instance"),
    [("llama-3.1-8b", 8, "trn2.48xlarge"), ("llama-3.3-70b", 32, "trn2.48xlarge")],
)
def test_published_models_lower_from_their_configs_alone(tmp_path, name, cores, instance):
    done = ranvier.compile(
        str(CONFIGS / name), target="neuron-trn2", instance=instance, max_model_len=8192,
        max_num_seqs=8, tensor_parallel_size=cores, artifacts=str(tmp_path), **ONE_BUCKET,
    )  # fmt: skip
    memory = done.report["memory"]
    assert done.report["fits"] is True
    assert memory["total_bytes"] < memory["limit_bytes"] == 24 * 2**30
    assert [p["violations"] for p in done.report["programs"]] == [[], []]
    assert "config alone" in done.report["missing"]["weights.r0.bin"]
    text = (done.path / "programs/decode.r8.c8192.stablehlo").read_text()
    layers, hidden = (32, 4096) if "8b" in name else (80, 8192)
    kv, queries = (1, 4) if "8b" in name else (1, 2)
    assert f"tensor<{layers}x{hidden}x{(queries + 2 * kv) * 128}xbf16>" in text
    assert "stablehlo.all_reduce" in text
    assert "stablehlo.all_gather" in text
    assert "sdy." not in text


def test_what_does_not_fit_is_told_and_not_written(tmp_path):
    done = ranvier.compile(
        str(CONFIGS / "llama-3.3-70b"), target="neuron-inf2", instance="inf2.xlarge",
        tensor_parallel_size=2, artifacts=str(tmp_path), max_num_seqs=1, **ONE_BUCKET,
    )  # fmt: skip
    assert done.report["fits"] is False
    assert done.report["memory"]["problems"]
    assert done.path is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"target": "neuron-trn2"}, "needs the instance"),
        ({"target": "neuron-trn2", "instance": "inf2.xlarge"}, "Inferentia2 chips"),
        ({"target": "neuron-trn2", "instance": "trn2.48xlarg"}, "trn2.48xlarge"),
        ({"target": "cpu", "instance": "trn2.48xlarge"}, "is for Neuron"),
        ({"target": "cpu", "pipeline_parallel_size": 2}, "does not divide the model's 3 layers"),
    ],
)
def test_wrong_choices_are_named(options, given, match):
    with pytest.raises(ConfigError, match=match):
        ranvier.compile(**{**options, **given})


def test_serving_for_neuron_without_its_artifact_says_how_to_make_it(options, tmp_path):
    given = {**options, "artifacts": str(tmp_path)}
    with pytest.raises(TargetError, match="There is no artifact"):
        ranvier.LLM(target="neuron-trn2", **given)


def test_finish_refuses_an_artifact_of_another_target(llm, tiny_options):
    folder = next(Path(tiny_options["artifacts"]).glob("*/manifest.json")).parent
    with pytest.raises(ArtifactError, match="is for cpu"):
        from ranvier.build.neuron.cross import finish_artifact

        finish_artifact(folder, [folder.parent], "", print)


@pytest.mark.long
@pytest.mark.parametrize("axes", [("64", "2"), ("128", "1")])
def test_405b_over_two_instances_is_lowered_from_its_config_alone(tmp_path, capsys, axes):
    config = CONFIGS / "llama-3.1-405b"
    words = [str(config), "--target", "neuron-trn2", "--instance", "trn2.48xlarge", "--nnodes", "2",
             "--tensor-parallel-size", axes[0], "--pipeline-parallel-size", axes[1],
             "--sequence-parallel", "--max-model-len", "8192", "--max-num-seqs", "16",
             "--artifacts", str(tmp_path), "--json"]  # fmt: skip
    assert main(["compile", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] and report["artifact"]
    assert len(report["programs"]) > 10
    assert [p["violations"] for p in report["programs"] if p["violations"]] == []
    assert report["seconds"] < 600
    weights = [name for name in report["missing"] if name.startswith("weights")]
    assert len(weights) == 128
