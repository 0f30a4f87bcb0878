"""Encoders over two cores, with their collectives, give the features of one core."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = "tests.numerics.vision_cores"
CASES = ("llava/one", "qwen2_5_vl/one", "pixtral/two", "mllama/first")
BOUND = 1e-5


def test_encoders_over_two_cores_give_the_features_of_one():
    command = [sys.executable, "-m", SCRIPT, *CASES]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=root
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(CASES)
    assert max(found.values()) <= BOUND, found
