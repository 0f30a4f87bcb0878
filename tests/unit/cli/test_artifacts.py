"""`ranvier artifacts` and `ranvier compile`: what they print, return and leave alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ranvier.artifact.lock import hold
from ranvier.artifact.read import read_manifest
from ranvier.cli.main import main
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact


@pytest.fixture(scope="module")
def artifact(tiny_options):
    return ensure_artifact(parse_options(tiny_options))


@pytest.fixture
def root(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / artifact.name)
    return tmp_path


def flags(options):
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def test_ls_lists_what_is_there(root, artifact, capsys):
    (root / f"{'0' * 20}.building").mkdir()
    (root / "another folder").mkdir()
    assert main(["artifacts", "ls", str(root)]) == 0
    out = capsys.readouterr().out
    assert artifact.name in out
    assert "unfinished" in out
    assert "another" not in out
    assert main(["artifacts", "ls", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} == {"artifact", "unfinished"}
    (root / artifact.name / "manifest.json").write_text("{")
    assert main(["artifacts", "ls", str(root)]) == 0
    assert "damaged" in capsys.readouterr().out


def test_inspect_shows_the_key(artifact, capsys):
    assert main(["artifacts", "inspect", str(artifact)]) == 0
    out = capsys.readouterr().out
    assert "max_model_len        128" in out
    assert "weights.bin" in out
    assert main(["artifacts", "inspect", str(artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"]["max_model_len"] == 128


def test_verify_fails_for_one_flipped_byte_of_any_file(root, artifact, capsys):
    folder = root / artifact.name
    assert main(["artifacts", "verify", str(folder)]) == 0
    for name in [*read_manifest(folder).files, "manifest.json"]:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert main(["artifacts", "verify", str(folder)]) == 4
        assert name in capsys.readouterr().out
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (folder / "foreign.bin").write_bytes(b"")
    assert main(["artifacts", "verify", str(folder)]) == 4
    assert "foreign.bin: not in manifest" in capsys.readouterr().out


def test_diff_names_the_fields(artifact, tiny_options, capsys):
    other = ensure_artifact(parse_options({**tiny_options, "max_num_seqs": 2}))
    assert main(["artifacts", "diff", str(artifact), str(artifact)]) == 0
    capsys.readouterr()
    assert main(["artifacts", "diff", str(artifact), str(other)]) == 1
    assert "max_num_seqs: 4 there, 2 here" in capsys.readouterr().out
    command = ["artifacts", "diff", str(artifact), *flags(tiny_options)]
    assert main(command) == 0
    assert main([*command, "--block-size", "64"]) == 1
    assert "block_tokens: 32 there, 64 here" in capsys.readouterr().out


def test_gc_tells_first_and_removes_leftovers_only(root, artifact, capsys):
    unfinished = root / f"{'0' * 20}.building"
    damaged = root / f"{'1' * 20}.damaged-5"
    foreign = root / "models"
    for folder in (unfinished, damaged, foreign):
        folder.mkdir()
    assert main(["artifacts", "gc", str(root)]) == 0
    assert capsys.readouterr().out.count("would remove") == 2
    assert unfinished.is_dir()
    assert main(["artifacts", "gc", str(root), "--yes"]) == 0
    left = {path.name for path in root.iterdir() if path.is_dir()}
    assert left == {artifact.name, "models"}


def test_gc_removes_the_named_and_the_old_but_nothing_in_use(root, artifact, capsys):
    folder = root / artifact.name
    asked = ["artifacts", "gc", str(root), "--yes"]
    assert main([*asked, "--older-than", "1"]) == 0
    assert folder.is_dir()
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    with hold(folder):
        assert main([*asked, "--older-than", "1"]) == 0
        assert main([*asked, "--remove", artifact.name]) == 0
    assert capsys.readouterr().out.count("another process builds or uses it") == 2
    assert folder.is_dir()
    assert main([*asked, "--remove", artifact.name]) == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify"], "at least one"),
        (["inspect"], "one artifact's folder"),
        (["diff", "a"], "No model"),
        (["gc", ".", "--remove", "nothing"], "no artifact 'nothing'"),
        (["gc", ".", "--older-than", "-1"], "at least 0"),
        (["ls", "/nowhere"], "no such folder"),
        (["lst"], "invalid choice"),
    ],
)
def test_wrong_use_is_an_error(words, message, capsys):
    assert main(["artifacts", *words]) in (2, 4)
    assert message in capsys.readouterr().err


def test_a_dry_run_builds_nothing(tiny_options, tmp_path, capsys):
    options = {**tiny_options, "artifacts": str(tmp_path)}
    assert main(["compile", "--dry-run", *flags(options)]) == 0
    out = capsys.readouterr().out
    assert "programs   step.t1, step.t4, step.t8, step.t32" in out
    assert "KV cache" in out
    assert "about" in out
    assert list(tmp_path.iterdir()) == []
    assert main(["compile", "--dry-run", "--json", *flags(options)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["is_built"] is False
    assert plan["memory_bytes"]["total"] < plan["available_bytes"]


def test_compile_prints_the_folder(tiny_options, artifact, capsys):
    assert main(["compile", *flags(tiny_options)]) == 0
    assert Path(capsys.readouterr().out.strip()) == artifact
    assert main(["compile", "--json", *flags(tiny_options)]) == 0
    assert Path(json.loads(capsys.readouterr().out)["artifact"]) == artifact
