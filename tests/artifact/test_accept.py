"""The acceptance suite on the CPU: both families pass, a wrong reference does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ranvier.cli.options.settings import parse_options
from ranvier.cli.reports import accept as suite


@pytest.mark.parametrize("family", ["ragged", "unragged"])
def test_every_program_is_checked_and_passes(tiny_options, family, capsys, tmp_path):
    words = [tiny_options["model"], "--dtype", "float32", "--max-model-len", "128",
             "--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--program-family", family,
             "--artifacts", tiny_options["artifacts"],
             "--out", str(tmp_path / "report.json")]  # fmt: skip
    assert suite.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    names = [row["name"] for row in report["programs"]]
    assert all(name.startswith("step." if family == "ragged" else ("prefill.", "decode."))
               for name in names)  # fmt: skip
    assert len(names) >= 2
    assert all(row["error"] < 1e-3 and row["tokens_per_s"] > 0 for row in report["programs"])
    assert report["tokens"]["equal"] == 16


def test_a_wrong_reference_fails_every_program(tiny_options, monkeypatch):
    true = suite._reference

    def wrong(options):
        ids, logits, tokens = true(options)
        return ids, np.roll(logits, 1, axis=1), tokens

    monkeypatch.setattr(suite, "_reference", wrong)
    report = suite.accept(parse_options(tiny_options))
    assert not report["passed"]
    assert not any(row["passed"] for row in report["programs"])
