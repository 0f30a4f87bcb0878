"""Artifacts as the environment promises: shared, reused untouched, misses explained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ranvier.artifact.manifest import canonical
from ranvier.artifact.read import read_manifest, verify
from ranvier.cli.options import settings
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact
from ranvier.core.buckets import BucketSet
from ranvier.core.errors import ArtifactError
from ranvier.runtime.load import load_runner

BUILD = (
    "import sys, json; from ranvier.cli.options.settings import parse_options; "
    "from ranvier.cli.wire import ensure_artifact; "
    "print(ensure_artifact(parse_options(json.loads(sys.argv[1]))))"
)


@pytest.fixture(scope="module")
def artifact(tiny_options):
    return ensure_artifact(parse_options(tiny_options))


@pytest.fixture
def unnamed(tiny_options):
    """The options without a folder: the environment names it."""
    return {name: value for name, value in tiny_options.items() if name != "artifacts"}


def start(options, root):
    words = [sys.executable, "-c", BUILD, json.dumps({**options, "artifacts": str(root)})]
    return subprocess.Popen(words, stdout=-1, stderr=-1, text=True)


def test_processes_at_once_build_once_and_agree(unnamed, tmp_path):
    roots = [tmp_path / "one", tmp_path / "two", tmp_path / "two"]
    children = [start(unnamed, root) for root in roots]
    outs = [child.communicate(timeout=250) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outs
    # The two that share a folder: one builds, the other waits and has the same.
    assert sum("packing weights" in err for _, err in outs[1:]) == 1
    assert outs[1][0] == outs[2][0]
    one, two = (read_manifest(Path(out.strip())) for out, _ in outs[:2])
    assert (one.key, one.programs, one.arrays, one.model) == (
        two.key, two.programs, two.arrays, two.model
    )  # fmt: skip
    # XLA:CPU compiles in threads and keeps the order in which they end: binaries may differ.
    differing = [name for name in one.files if one.files[name] != two.files[name]]
    assert all(name.endswith(".bin") and name.startswith("programs/") for name in differing)


def test_a_changed_dtype_is_named(tiny_options, artifact):
    options = {**tiny_options, "dtype": "bfloat16", "require_artifacts": True}
    with pytest.raises(ArtifactError, match="dtype: 'bfloat16', there 'float32'"):
        ensure_artifact(parse_options(options))


def test_the_variable_names_the_folder(unnamed, artifact, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(artifact.parent))
    assert ensure_artifact(parse_options({**unnamed, "require_artifacts": True})) == artifact


def test_a_missing_folder_of_the_variable_is_made(unnamed, artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "new" / "deep"))
    built = ensure_artifact(parse_options(unnamed))
    assert built.parent == tmp_path / "new" / "deep"
    assert verify(built) == []


def test_an_option_wins_over_the_variable(tiny_options, artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path))
    options = {**tiny_options, "require_artifacts": True}
    assert ensure_artifact(parse_options(options)) == artifact


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(artifact, tmp_path):
    copy = tmp_path / artifact.name
    shutil.copytree(artifact, copy)
    path = copy / "manifest.json"
    data = path.read_bytes()
    for at in range(0, len(data), 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        (fault,) = verify(copy)
        assert "manifest.json" in fault


def test_a_damaged_manifest_is_told_and_built_again(tiny_options, artifact, tmp_path, capsys):
    shutil.copytree(artifact, tmp_path / artifact.name)
    path = tmp_path / artifact.name / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"vocab_size":160', b'"vocab_size":161'))
    options = {**tiny_options, "artifacts": str(tmp_path)}
    with pytest.raises(ArtifactError, match="no artifact") as error:
        ensure_artifact(parse_options({**options, "require_artifacts": True}))
    assert "manifest.json: was changed" in error.value.hint
    built = ensure_artifact(parse_options(options))
    assert "artifact miss" in capsys.readouterr().err
    assert verify(built) == []


def test_a_place_where_nothing_can_be_written_is_named(tiny_options, tmp_path):
    (tmp_path / "file").write_text("")
    options = {**tiny_options, "artifacts": str(tmp_path / "file" / "deep")}
    with pytest.raises(ArtifactError, match="nothing can be written there"):
        ensure_artifact(parse_options(options))


def test_a_miss_in_a_read_only_place_is_explained(unnamed, artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(artifact.parent))
    monkeypatch.setenv("RANVIER_CACHE_ROOT", str(tmp_path))
    monkeypatch.setattr(settings, "is_writable", lambda folder: folder != artifact.parent)
    built = ensure_artifact(parse_options({**unnamed, "max_num_seqs": 2}))
    assert tmp_path in built.parents
    told = capsys.readouterr().err
    assert f"{artifact.parent} can't be written to" in told
    assert "artifact miss: max_num_seqs: 2, there 4" in told


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_num_seqs": 64}, "No program takes a decode step of 64 tokens"),
        ({"buckets": BucketSet()}, "The bucket set is empty"),
        ({"buckets": BucketSet(tokens=(2, 32))}, "has no binary of step.t2"),
        (
            {"buckets": BucketSet(prefill_tokens=(32,), decode_rows=(4,), contexts=(64,))},
            "No program takes a context of 128 tokens",
        ),
    ],
)
def test_an_artifact_with_a_gap_is_not_loaded(artifact, tmp_path, changed, message):
    manifest = read_manifest(artifact)
    key = msgspec.structs.replace(manifest.key, **changed)
    folder = tmp_path / key.name
    shutil.copytree(artifact, folder)
    changed_manifest = msgspec.structs.replace(manifest, key=key).signed()
    (folder / "manifest.json").write_bytes(canonical(changed_manifest))
    with pytest.raises(ArtifactError, match=message):
        load_runner(folder, [])
