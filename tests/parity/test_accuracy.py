"""`ranvier accuracy` on the tiny model: with transformers' logits, its own, and a damaged copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ranvier.cli.main import main
from ranvier.targets.reference_file import (
    Reference,
    ReferencePrompt,
    load_reference,
    save_reference,
)

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def flags(tiny_options):
    names = ("dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "artifacts")
    return [word for name in names for word in (f"--{name}", str(tiny_options[name]))]


@pytest.fixture(scope="module")
def reference(tiny_model, flags, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "tiny.npz"
    prompts = ["--prompt", "Hello", "--prompt-ids", "5,6,7,8"]
    made = ["--make-reference", str(path), "--tokens", "12"]
    assert main(["accuracy", str(tiny_model), *flags, *prompts, *made]) == 0
    return path


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """The model with the last layer's down projection three times as large."""
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    name = sorted(key for key in tensors if key.endswith("down_proj.weight"))[-1]
    tensors[name] = tensors[name] * 3
    safetensors.save_file(tensors, folder / "model.safetensors")
    return folder


def compared(capsys, model, reference, *flags):
    code = main(["accuracy", str(model), "--reference", str(reference), *flags, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_model_passes_against_its_own_reference(capsys, tiny_model, reference, flags):
    code, report = compared(capsys, tiny_model, reference, *flags)
    assert code == 0
    assert report["passed"]
    first, second = report["prompts"]
    assert first["tokens"]["matched"] == first["tokens"]["count"] == 12
    assert second["logits"]["first_divergence"] is None
    assert max(first["logits"]["error_by_position"]) < 1e-4
    assert [t["name"] for t in first["logits"]["tolerances"]] == [
        "top-5", "top-50", "top-1000", "all",
    ]  # fmt: skip


def test_transformers_logits_are_a_reference(capsys, tiny_model, flags, tmp_path):
    golden = np.load(GOLDENS / "llama/golden.npz")
    ids = golden["ids"].tolist()
    prompt = ReferencePrompt(tuple(ids[:10]), tuple(ids[10:]), golden["logits"][9:-1])
    path = tmp_path / "transformers.npz"
    save_reference(path, Reference("llama", "transformers, float32", (prompt,)))
    tight = ["--mode", "logit-matching", "--tolerance-map", '{"all": [1e-4, 0]}']
    code, report = compared(capsys, tiny_model, path, *flags, *tight)
    assert code == 0
    assert report["made_by"] == "transformers, float32"


def test_bfloat16_stays_within_the_published_tolerances(capsys, tiny_model, reference, flags):
    lower = [*flags, "--dtype", "bfloat16", "--mode", "logit-matching"]
    _, report = compared(capsys, tiny_model, reference, *lower)
    assert report["dtype"] == "bfloat16"
    for prompt in report["prompts"]:
        assert all(t["passed"] for t in prompt["logits"]["tolerances"])
        assert max(prompt["logits"]["error_by_position"]) > 1e-4


def test_damaged_model_fails_and_the_first_divergence_is_named(
    capsys, damaged, tiny_model, reference, flags
):
    code, report = compared(capsys, damaged, reference, *flags)
    assert code == 1
    assert not report["passed"]
    prompt = report["prompts"][0]
    first = prompt["tokens"]["first_divergence"]
    expected = load_reference(reference).prompts[0].token_ids
    assert first["expected"] == expected[first["position"]]
    assert first["found"] != first["expected"]
    # Both ways stand on the same prefix up to there, so they name the same position.
    assert prompt["logits"]["first_divergence"] == first["position"]
    assert main(["accuracy", str(damaged), "--reference", str(reference), *flags]) == 1
    text = capsys.readouterr().out
    assert f"first divergence at position {first['position']}" in text
    assert "FAILED" in text


def test_wrong_input_is_named(capsys, tiny_model, reference, flags, tmp_path):
    def failed(*arguments):
        assert main(["accuracy", str(tiny_model), *flags, *arguments]) == 2
        return capsys.readouterr().err

    assert "Neither --reference nor" in failed()
    out = str(tmp_path / "r.npz")
    assert "ids must be 0 to 159" in failed("--make-reference", out, "--prompt-ids", "1,160")
    assert "give numbers" in failed("--make-reference", out, "--prompt-ids", "a")
    assert "tokens must be 1" in failed("--make-reference", out, "--tokens", "0")
    assert "exceed the model's 256" in failed("--make-reference", out, "--tokens", "300")
    assert "needs" in failed("--reference", str(reference), "--max-model-len", "8")
    assert "not JSON" in failed(
        "--reference", str(reference), "--mode", "logit-matching", "--tolerance-map", "{"
    )
    small = np.zeros((1, 10), np.float32)
    other = tmp_path / "other.npz"
    save_reference(other, Reference("m", "b", (ReferencePrompt((1,), (2,), small),)))
    assert "a vocabulary of 10 tokens" in failed("--reference", str(other))
