"""A draft head in the real engine changes no token, in every published layout.

The heads are random (tests/parity/make_eagle_goldens.py), so that most of what they guess is wrong.
"""

from __future__ import annotations

import json
import shutil

import pytest
from tests.engine.test_speculation import K, always, ask, prompts
from tests.parity.test_eagle import HEADS, LAYOUTS

from ranvier import LLM
from ranvier.core.errors import CheckpointError, ConfigError

CASES = [*((name, "auto") for name in LAYOUTS), ("eagle3", "unragged")]


@pytest.fixture(scope="module")
def options(tiny_options):
    return {**tiny_options, "max_model_len": 96}


@pytest.fixture(scope="module")
def plain(options):
    with LLM(**options) as model:
        yield model


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def guessing(request, options):
    name, family = request.param
    config = {"model": str(HEADS / name), "num_speculative_tokens": K}
    if name != "speculators":  # what it is can be told, or found out
        config["method"] = name
    with LLM(**options, program_family=family, speculative_config=config) as model:
        model._engine.scheduler.speculation.policy.choose = always
        yield model


@pytest.mark.parametrize("mode", ["greedy", "drawn", "penalties", "several"])
def test_tokens_are_those_without_a_head(plain, guessing, mode):
    want, got = (ask(model, prompts(6), mode) for model in (plain, guessing))
    assert [[p[:4] for p in one] for one in got] == [[p[:4] for p in one] for one in want]
    assert guessing._engine.stats().draft_tokens > 0


@pytest.mark.parametrize("length", range(96 - 2 * (K + 1), 96))
def test_lengths_near_the_limit_with_neighbours(plain, guessing, length):
    asked = [[9] * length, [5, 6] * 20, [7] * (length - 3)]
    want = ask(plain, asked, "greedy", max_tokens=None)
    got = ask(guessing, asked, "greedy", max_tokens=None)
    assert [p[0][:4] for p in got] == [p[0][:4] for p in want]
    assert all(
        len(own) + len(p[0][0]) == 96 and p[0][2] == "length"
        for own, p in zip(asked, got, strict=True)
    )


def test_a_head_of_another_model_is_refused_before_anything_is_built(options, tmp_path):
    folder = tmp_path / "head"
    shutil.copytree(HEADS / "eagle3", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    given = {"method": "eagle3", "model": str(folder)}
    with pytest.raises(CheckpointError, match=r"hidden 128.*target.*hidden 64"):
        LLM(**options, speculative_config=given)
    given = {"method": "eagle", "model": str(HEADS / "eagle3")}
    with pytest.raises(ConfigError, match="is an eagle3 head"):
        LLM(**options, speculative_config=given)
