"""Artifacts among processes: killed and parallel builds, damage mended, readers that hold on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ranvier import LLM, SamplingParams
from ranvier.artifact.lock import free_to_remove, hold
from ranvier.artifact.read import read_manifest, verify
from ranvier.cli.options import settings
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact
from ranvier.core.errors import ArtifactError, DamagedArtifact
from ranvier.runtime import load

PARAMS = SamplingParams(temperature=0, max_tokens=4)
BUILD = (
    "import sys, json; from ranvier.cli.options.settings import parse_options; "
    "from ranvier.cli.wire import ensure_artifact; "
    "print(ensure_artifact(parse_options(json.loads(sys.argv[1]))))"
)


@pytest.fixture(scope="module")
def artifact(tiny_options):
    return ensure_artifact(parse_options(tiny_options))


@pytest.fixture
def copied(tiny_options, artifact, tmp_path):
    """Options and folder of a copy that may be damaged."""
    folder = tmp_path / "root" / artifact.name
    shutil.copytree(artifact, folder)
    return {**tiny_options, "artifacts": str(folder.parent)}, folder


def builder(options):
    command = [sys.executable, "-c", BUILD, json.dumps(options)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True)


def flip(path, at=5):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def answer(options):
    llm = LLM(**options)
    (out,) = llm.generate([{"prompt_token_ids": [5, 6, 7]}], PARAMS, use_tqdm=False)
    llm.close()
    return out.outputs[0].token_ids


def test_two_processes_at_once_build_one_artifact(tiny_options, tmp_path):
    children = [builder({**tiny_options, "artifacts": str(tmp_path)}) for _ in range(2)]
    outs = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert sum("packing weights" in err for _, err in outs) == 1
    assert verify(Path(outs[0][0].strip())) == []


def test_a_build_killed_in_the_middle_leaves_nothing_half_valid(tiny_options, artifact, tmp_path):
    options = {**tiny_options, "artifacts": str(tmp_path)}
    child = builder(options)
    while "compiled" not in (line := child.stderr.readline()):
        assert line, "the build ended before it compiled anything"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / artifact.name).exists()
    assert (tmp_path / f"{artifact.name}.building").is_dir()
    built = ensure_artifact(parse_options(options))
    assert verify(built) == []
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [artifact.name]


def test_what_a_killed_build_finished_is_reused(tiny_options, artifact, tmp_path, capsys):
    options = {**tiny_options, "artifacts": str(tmp_path)}
    folder = tmp_path / f"{artifact.name}.building"
    shutil.copytree(artifact, folder)
    manifest = read_manifest(folder)
    record = {n: {"size": e.size, "sha256": e.sha256} for n, e in manifest.files.items()}
    (folder / "finished.json").write_text(json.dumps(record))
    (folder / "manifest.json").unlink()
    (folder / "weights.bin").write_bytes(b"half")
    flip(folder / f"programs/{manifest.programs[0].name}.bin")
    built = ensure_artifact(parse_options(options))
    assert verify(built) == []
    assert capsys.readouterr().err.count("compiled step") == 1


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "refuse"])
def test_a_damaged_binary_is_compiled_again_from_its_stablehlo(
    copied, artifact, capsys, monkeypatch, harm
):
    options, folder = copied
    path = folder / f"programs/{read_manifest(folder).programs[1].name}.bin"
    if harm == "refuse":
        refuse_once(monkeypatch)
    elif harm == "flip":
        flip(path)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    weights = (folder / "weights.bin").stat().st_ino
    assert answer(options) == answer({**options, "artifacts": str(artifact.parent)})
    said = capsys.readouterr().err
    assert said.count("again from its StableHLO") == 1
    assert "packing weights" not in said
    assert verify(folder) == []
    assert (folder / "weights.bin").stat().st_ino == weights
    assert not list(folder.parent.glob("*.building")) + list(folder.parent.glob("*.damaged*"))


def refuse_once(monkeypatch):
    """The runtime refuses the first binary that it is given."""
    real, calls = load.deserialize, []

    def deserialize(data, device):
        calls.append(data)
        if len(calls) == 1:
            raise RuntimeError("unknown version")
        return real(data, device)

    monkeypatch.setattr(load, "deserialize", deserialize)


def test_other_damage_builds_again(copied, capsys):
    options, folder = copied
    flip(folder / "weights.bin")
    assert answer(options)
    said = capsys.readouterr().err
    assert "weights.bin: sha256" in said
    assert "packing weights" in said
    assert verify(folder) == []
    assert not list(folder.parent.glob("*.damaged*"))


@pytest.mark.parametrize("name", ["weights.bin", "programs/step.t1.bin"])
def test_damage_is_refused_where_artifacts_are_required(copied, name):
    options, folder = copied
    flip(folder / name)
    with pytest.raises(DamagedArtifact, match=name):
        LLM(**{**options, "require_artifacts": True})
    assert verify(folder) != []


def test_a_read_only_place_is_read_and_mended_elsewhere(copied, tmp_path, monkeypatch, capsys):
    options, folder = copied
    monkeypatch.setenv("RANVIER_CACHE_ROOT", str(tmp_path / "cache"))
    real = settings.is_writable
    monkeypatch.setattr(settings, "is_writable", lambda p: p != folder.parent and real(p))
    monkeypatch.setattr("ranvier.cli.wire.is_writable", settings.is_writable)
    before = sorted(folder.parent.rglob("*"))
    assert answer(options)
    assert sorted(folder.parent.rglob("*")) == before
    flip(folder / "programs/step.t1.bin")
    assert answer(options)
    assert answer(options)
    assert sorted(folder.parent.rglob("*")) == before
    mended = tmp_path / "cache" / "neuron-compiled-artifacts" / folder.name
    assert verify(mended) == []
    assert capsys.readouterr().err.count("again from its StableHLO") == 1
    shutil.rmtree(mended)
    flip(folder / "weights.bin")
    assert answer(options)
    assert verify(mended) == []


def test_a_required_artifact_in_a_read_only_place_is_found(copied, monkeypatch, tmp_path):
    options, folder = copied
    monkeypatch.setenv("RANVIER_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "is_writable", lambda p: False)
    found = ensure_artifact(parse_options({**options, "require_artifacts": True}))
    assert found == folder
    with pytest.raises(ArtifactError, match="no artifact"):
        ensure_artifact(parse_options({**options, "require_artifacts": True, "max_num_seqs": 2}))


def test_an_artifact_in_use_is_not_free(copied):
    _, folder = copied
    with hold(folder), free_to_remove(folder) as is_free:
        assert not is_free
    with free_to_remove(folder) as is_free:
        assert is_free


def test_a_copy_of_the_model_finds_the_same_artifact(tiny_options, artifact, tmp_path):
    """Times and paths are no part of the key; what the files hold is."""
    model = tmp_path / "elsewhere"
    shutil.copytree(tiny_options["model"], model, copy_function=shutil.copyfile)
    options = {**tiny_options, "model": str(model), "require_artifacts": True}
    assert ensure_artifact(parse_options(options)) == artifact
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "x"}))
    with pytest.raises(ArtifactError, match="weights: "):
        ensure_artifact(parse_options(options))
