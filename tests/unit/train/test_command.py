"""`ranvier train-eagle` and `convert-eagle` as a user runs them, on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ranvier.cli.main import main
from ranvier.weights.safetensors import SafetensorsFile


@pytest.fixture(scope="module")
def head(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eagle") / "head"
    return folder, [
        "train-eagle", str(tiny_model), "--output", str(folder), "--tokens", "48",
        "--epochs", "2", "--unroll-epochs", "1", "--unroll", "2", "--held-out", "4",
        "--draft-vocab", "64", "--intermediate", "32",
    ]  # fmt: skip


def test_from_data_to_a_head_that_stands_alone(head, tiny_model, tmp_path, capsys):
    folder, command = head
    data = tmp_path / "data.jsonl"
    rows = [{"text": "the cat sat on the mat and the dog " * (1 + i % 2)} for i in range(20)]
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world, yes"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": chat}]))
    assert main([*command, "--data", str(data)]) == 0
    told = capsys.readouterr().out
    report = json.loads(told.strip().splitlines()[-1])
    assert "share of places of held-out answers" in told
    assert report["examples"] == 21 and len(report["acceptance_by_position"]) == 2
    assert report["acceptance_length"] == pytest.approx(1 + sum(report["acceptance_by_position"]))
    names = set(SafetensorsFile(folder / "model.safetensors").names())
    assert {"fc.weight", "midlayer.hidden_norm.weight", "d2t", "t2d"} <= names
    assert "lm_head.weight" not in names
    # The same command again finds everything done and says the same.
    before = (folder / "model.safetensors").read_bytes()
    assert main([*command, "--data", str(data)]) == 0
    assert (folder / "model.safetensors").read_bytes() == before

    full = tmp_path / "full"
    words = ["convert-eagle", str(folder), "--target", str(tiny_model), "--output", str(full)]
    assert main(words) == 0
    assert "embed_tokens.weight and lm_head.weight" in capsys.readouterr().out
    file = SafetensorsFile(full / "model.safetensors")
    assert file.shape("lm_head.weight") == (64, 64) and file.shape("embed_tokens.weight")[0] == 160
    assert np.array_equal(
        file.read("fc.weight"), SafetensorsFile(folder / "model.safetensors").read("fc.weight")
    )
    assert main(words) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_self_generated_answers_are_kept(head, tmp_path, capsys):
    folder, command = head
    words = [str(tmp_path / "own") if word == str(folder) else word for word in command]
    assert main([*words, "--self-generate", "16"]) == 0
    lines = (tmp_path / "own" / "training" / "examples.jsonl").read_text().splitlines()
    assert len(lines) == 16 and all(json.loads(line)["ids"] for line in lines)
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["examples"] == 16


@pytest.mark.parametrize(
    "words, message",
    [
        (["--epochs", "0"], "--epochs must be positive"),
        (["--unroll-epochs", "9"], "--unroll-epochs must be in [0, 2]"),
        (["--tokens", "8"], "must be at least 16"),
        (["--method", "eagle", "--aux-layers", "1"], "--aux-layers is of eagle3"),
        (["--aux-layers", "2", "9"], "the target has 3 layers"),
        (["--aux-layers", "2", "1"], "ascending"),
        (["--self-generate", "2"], "2 examples, of which 4 are held out"),
    ],
)
def test_wrong_options_are_errors(head, tmp_path, capsys, words, message):
    folder, command = head
    words = [*[str(tmp_path) if w == str(folder) else w for w in command], *words]
    if "--self-generate" not in words:
        words += ["--self-generate", "16"]
    assert main(words) == 2
    assert message in capsys.readouterr().err
