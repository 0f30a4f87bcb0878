"""The commands and the Python of the pages run as they stand, in a fresh folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PAGES = (
    "plan.md",
    "doctor.md",
    "accuracy.md",
    "neuron/quickstart.md",
    "neuron/from-vllm-neuron.md",
    "neuron/from-transformers-neuronx.md",
)
QUICK = ("plan.md", "doctor.md")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    found = []
    for page in PAGES:
        for kind, text in BLOCK.findall((ROOT / "docs" / page).read_text()):
            marks = () if page in QUICK else pytest.mark.long
            found.append(pytest.param(page, kind, text, id=f"{page}-{len(found)}", marks=marks))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for a run of all pages, with `ranvier` on the path."""
    folder = tmp_path_factory.mktemp("pages")
    command = folder / "ranvier"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ranvier.cli.main "$@"\n')
    command.chmod(0o755)
    return folder


@pytest.mark.parametrize(("page", "kind", "text"), blocks())
def test_block_runs(folder, page, kind, text):
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "NEURON_COMPILED_ARTIFACTS": str(folder / "artifacts"),
    }
    command = ["bash", "-ec", text] if kind == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{page}:\n{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert done.stdout.strip() or "npz" in text
