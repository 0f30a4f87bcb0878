"""One core's program, run on two CPU devices with its collectives, gives the reference logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.test_parity import BOUND, GOLDENS

SCRIPT = Path(__file__).parent / "two_cores.py"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_two_cores_give_the_reference_logits(family):
    command = [sys.executable, str(SCRIPT), str(GOLDENS / family)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= BOUND
