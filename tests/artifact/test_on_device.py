"""One artifact from a laptop to the device: its binaries are made where it runs, of StableHLO.

The device is a stand-in: this CPU under the name of a Neuron target, so that the cross path, the
PJRT compile and the loader are the real ones. No Neuron hardware has run any of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import pytest

import ranvier
from ranvier.artifact import binaries as store
from ranvier.artifact.inventory import items, removable
from ranvier.artifact.read import read_manifest, verify
from ranvier.build.neuron import binaries as maker
from ranvier.build.programs import Program
from ranvier.cli.main import main
from ranvier.cli.options import settings
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact
from ranvier.core.errors import ArtifactError, DamagedArtifact, TargetError
from ranvier.runtime.compat import LoadedProgram
from ranvier.targets import table

NAMES = ["decode.r4.c128", "prefill.t32.c128"]
PROMPTS = [list(range(3, 3 + n)) for n in (1, 7, 40)]
PARAMS = ranvier.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def _device():
    """This CPU in the place of a Trainium2."""
    row = table.TARGETS["neuron-trn2"]
    table.TARGETS["neuron-trn2"] = dataclasses.replace(row, platform="cpu")
    yield
    table.TARGETS["neuron-trn2"] = row


@pytest.fixture(scope="module")
def laptop(tiny_options, tmp_path_factory):
    """Options of the compile command, and the artifact that it made."""
    options = {
        **tiny_options, "override_neuron_config": {"enable_bucketing": False},
        "artifacts": str(tmp_path_factory.mktemp("cross")), "target": "neuron-trn2",
    }  # fmt: skip
    return options, ranvier.compile(instance="trn2.48xlarge", **options).path


@pytest.fixture
def device(laptop, tmp_path):
    """Options and folder of a copy of the artifact, as it lies on the instance."""
    options, made = laptop
    folder = tmp_path / "root" / made.name
    shutil.copytree(made, folder)
    return {**options, "artifacts": str(folder.parent)}, folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANVIER_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache" / "neuron-compiled-artifacts"


def answers(options):
    llm = ranvier.LLM(**options)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    outs = llm.generate(prompts, PARAMS, use_tqdm=False)
    llm.close()
    return [out.outputs[0].token_ids for out in outs]


@pytest.fixture(scope="module")
def expected(tiny_options):
    """Tokens of the CPU's own artifact, ragged and with its own kernels."""
    return answers(tiny_options)


def never(*_, **__):
    raise AssertionError("a model was traced or lowered")


def compiled_names(capsys):
    lines = capsys.readouterr().err.splitlines()
    return sorted(x.split()[-1] for x in lines if x.startswith("ranvier: compiled "))


def test_serving_makes_the_binaries_without_a_trace_and_once(device, expected, monkeypatch, capsys):
    options, folder = device
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(jax, "jit", never)
    monkeypatch.setattr(Program, "lower", never)
    assert answers(options) == expected
    told = capsys.readouterr().err
    assert "compiling 2 programs for this neuron-trn2 from their StableHLO" in told
    assert "can't save" not in told, told
    assert sum(line.startswith("ranvier: compiled ") for line in told.splitlines()) == 2
    assert {p: p.read_bytes() for p in before} == before
    assert verify(folder) == []
    assert answers({**options, "require_artifacts": True}) == expected
    assert compiled_names(capsys) == []


def test_a_required_artifact_without_binaries_names_the_command(device, capsys):
    options, folder = device
    with pytest.raises(ArtifactError, match="has no binary of prefill.t32.c128, decode") as caught:
        ranvier.LLM(**{**options, "require_artifacts": True})
    command = f"ranvier compile --finish {folder}"
    assert command in caught.value.hint
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    ranvier.LLM(**{**options, "require_artifacts": True}).close()


def test_a_read_only_folder_is_left_alone_and_the_cache_used(
    device, cache, monkeypatch, expected, capsys
):
    options, folder = device
    true = settings.is_writable
    monkeypatch.setattr(
        settings, "is_writable", lambda p: not p.is_relative_to(folder.parent) and true(p)
    )
    before = sorted(folder.rglob("*"))
    assert answers(options) == expected
    assert sorted(folder.rglob("*")) == before
    assert (cache / folder.name / store.FOLDER).is_dir()
    assert len(compiled_names(capsys)) == 2
    assert answers(options) == expected
    assert compiled_names(capsys) == []
    (item,) = items(cache)
    assert item.kind == "binaries"
    assert removable(cache, [], None) == []
    assert removable(cache, [folder.name], None) == [item]


def test_a_failing_program_is_named_and_the_rest_is_kept(device, monkeypatch, capsys):
    options, folder = device
    true = maker.compile_stablehlo

    def fails(text, device):
        if b"decode" in text[:200] or text == bad:
            raise RuntimeError("[NCC_EOOM001] out of memory")
        return true(text, device)

    bad = (folder / f"programs/{NAMES[0]}.stablehlo").read_bytes()
    monkeypatch.setattr(maker, "compile_stablehlo", fails)
    with pytest.raises(TargetError, match=f"1 of 2 programs did not compile: {NAMES[0]}.*HBM"):
        ranvier.LLM(**options)
    monkeypatch.setattr(maker, "compile_stablehlo", true)
    capsys.readouterr()
    ranvier.LLM(**options).close()
    assert compiled_names(capsys) == [NAMES[0]]


def test_a_flipped_byte_of_a_binary_is_found_and_that_binary_made_again(device, expected, capsys):
    options, folder = device
    answers(options)
    (path,) = folder.glob(f"{store.FOLDER}/*/{NAMES[1]}.bin")
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    assert f"{NAMES[1]}.bin: not what" in verify(folder)[0]
    capsys.readouterr()
    assert answers(options) == expected
    assert compiled_names(capsys) == [NAMES[1]]


def test_a_binary_that_the_runtime_refuses_is_made_again(device, expected, capsys):
    options, folder = device
    answers(options)
    own = maker.OwnBinaries(folder, read_manifest(folder), [folder.parent], _flags())
    own.store.add(NAMES[0], b"whole by its hash, and no executable")
    capsys.readouterr()
    assert answers(options) == expected
    assert compiled_names(capsys) == [NAMES[0]]


def _flags():
    from ranvier.cli.wire import binary_flags

    return binary_flags()


def test_other_compiler_flags_have_binaries_of_their_own(device, monkeypatch, capsys):
    options, folder = device
    ranvier.LLM(**options).close()
    monkeypatch.setenv("NEURON_CC_FLAGS", "--optlevel=1")
    capsys.readouterr()
    ranvier.LLM(**options).close()
    assert compiled_names(capsys) == NAMES
    assert len(list((folder / store.FOLDER).iterdir())) == 2


def test_changed_stablehlo_is_never_compiled_and_never_removed(device):
    options, folder = device
    path = folder / f"programs/{NAMES[0]}.stablehlo"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DamagedArtifact, match=NAMES[0]):
        ranvier.LLM(**options)
    assert path.is_file()


def test_a_plugin_that_cannot_save_programs_still_serves(device, expected, monkeypatch, capsys):
    options, folder = device

    def refuses(_):
        raise RuntimeError("UNIMPLEMENTED: serialize")

    monkeypatch.setattr(LoadedProgram, "serialize", refuses)
    assert answers(options) == expected
    assert "can't save programs: 2 are for this process alone" in capsys.readouterr().err
    assert not list(folder.rglob("*.bin.partial"))


def test_the_key_is_the_same_on_every_machine(laptop, monkeypatch):
    options, made = laptop
    from ranvier.build import build
    from ranvier.cli import wire

    monkeypatch.setattr(build.jaxlib_version, "__version__", "0.0.1")
    # set_flags adds to the variable, which later tests' own processes inherit: put it back.
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.setattr(wire, "FLAGS", "--xla_cpu_experimental_ynn_fusion_type=other")
    monkeypatch.setattr(build, "machine_fingerprint", lambda _: "another machine")
    assert ensure_artifact(parse_options({**options, "require_artifacts": True})) == made


@pytest.mark.parametrize("cores", [1, 2])
def test_logical_cores_are_in_the_key_and_named_where_they_differ(laptop, cores, monkeypatch):
    options, made = laptop
    assert read_manifest(made).key.logical_cores == 2
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", str(cores))
    if cores == 2:
        assert ensure_artifact(parse_options(options)) == made
        return
    with pytest.raises(TargetError, match="logical_cores: 1, there 2"):
        ensure_artifact(parse_options(options))


def test_programs_are_compiled_for_the_logical_cores_that_are_named(laptop, tmp_path):
    options, _ = laptop
    given = {**options, "artifacts": str(tmp_path), "logical_nc_config": 1}
    report = ranvier.compile(instance="trn2.48xlarge", **given).report
    assert report["logical_nc_config"] == 1
    assert report["memory"]["limit_bytes"] == 12 * 2**30
    assert json.loads((next(tmp_path.glob("*/manifest.json"))).read_text())["key"][
        "logical_cores"
    ] == 1  # fmt: skip
