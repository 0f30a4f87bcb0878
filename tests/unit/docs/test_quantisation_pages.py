"""The commands of the quantisation pages run, on a tiny model, and give loadable folders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ranvier.cli.main import main
from ranvier.weights.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[3]
PAGES = ("docs/quantisation.md", "docs/neuron/quantisation.md")
COMMANDS = [
    line
    for page in PAGES
    for line in re.findall(r"^ranvier (quantize .*)$", (ROOT / page).read_text(), re.MULTILINE)
]


def test_the_pages_hold_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(tiny_model, tmp_path, command):
    words = shlex.split(command)
    at = words.index("--output") + 1
    assert words[1] == "smollm2-135m" and words[at].startswith("/tmp/")
    words[1], words[at] = str(tiny_model), str(tmp_path / "out")
    short = ["--evaluation-tokens", "64", "--calibration-tokens", "512"]
    assert main([*words, *short]) == 0
    assert open_checkpoint(tmp_path / "out").quantisation is not None
