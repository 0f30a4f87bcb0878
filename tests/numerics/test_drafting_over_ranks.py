"""Drafters over several ranks change no token: draft models and heads, cut as their targets are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ranvier import LLM
from ranvier.build.drafting import draft_weight_shapes, pack_draft
from ranvier.build.eagle.open import open_eagle
from ranvier.build.pack import Form
from ranvier.build.shard.rank import ONE, Parallel
from ranvier.core.errors import ConfigError
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from tests.parity.test_eagle import HEADS, LAYOUTS

SCRIPT = Path(__file__).parent / "drafting_over_ranks.py"
CASES = [
    ("eagle3", 4, {}), ("draft_model", 4, {"sequence_parallel": True}),
    ("eagle", 2, {"program_family": "unragged"}),
]  # fmt: skip


def guessing(method, model):
    config = {"method": method, "model": model if method == "draft_model" else str(HEADS / method)}
    return {"speculative_config": {**config, "num_speculative_tokens": 2}}


def called(method, ranks, more):
    return f"{method} {ranks} {' '.join(map(str, more.values()))}"


@pytest.fixture(scope="module")
def answers(tiny_model, tmp_path_factory):
    model = str(tiny_model)
    wanted = [
        {"name": called(method, ranks, more),
         "options": {"model": model, "tensor_parallel_size": ranks, **more,
                     **guessing(method, model)}}
        for method, ranks, more in sorted(CASES, key=lambda case: -case[1])
    ]  # fmt: skip
    wanted += [
        {"name": called("", 1, more), "options": {"model": model, **more}}
        for more in ({}, {"program_family": "unragged"})
    ]
    wanted.append({"name": "eagle3 alone", "options": {"model": model, **guessing("eagle3", "")}})
    command = [
        sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("a")), json.dumps(wanted)
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES, ids=lambda case: called(*case))
def test_tokens_are_those_of_one_rank_without_a_drafter(answers, case):
    method, ranks, more = case
    same = {k: v for k, v in more.items() if k != "sequence_parallel"}
    got, want = answers[called(method, ranks, more)], answers[called("", 1, same)]
    assert got["tokens"] == want["tokens"]
    assert got["drafted"] > 0 and got["compiles"] == 0
    if method == "draft_model":  # the model drafts for itself
        assert got["accepted"] > 0.8 * got["drafted"]


def test_a_head_over_ranks_guesses_as_on_one(answers):
    got, want = answers["eagle3 4 "], answers["eagle3 alone"]
    assert (got["drafted"], got["accepted"]) == (want["drafted"], want["accepted"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parts_of_a_head_are_little_more_than_the_head(name):
    checkpoint = open_checkpoint(HEADS.parent / "goldens/llama")
    head, draft = open_eagle(HEADS / name, checkpoint, resolve(checkpoint.config))
    form, parallel = Form("float32", "reference"), Parallel(4)
    packed = dict(pack_draft(head, draft, form, parallel))
    shapes = draft_weight_shapes(draft, "float32", "reference", parallel)
    assert {n: parts[0].shape for n, parts in packed.items()} == {
        n: tuple(shape) for n, (shape, _) in shapes.items()
    }
    whole = {name: parts[0] for name, parts in pack_draft(head, draft, form, ONE)}
    for cut in ("qkv", "o", "gate_up", "down"):
        parts = packed[f"draft.{cut}"]
        assert len(parts) == 4
        assert parts[0].size < whole[f"draft.{cut}"].size / 2
    for part in packed["draft.fc"]:
        np.testing.assert_array_equal(part, whole["draft.fc"])


def test_over_stages_a_drafter_is_refused_by_name(tiny_options):
    config = guessing("draft_model", tiny_options["model"])
    with pytest.raises(ConfigError, match="pipeline_parallel_size=3: a drafter on the device"):
        LLM(**tiny_options, pipeline_parallel_size=3, **config)


def test_a_head_with_an_embedding_of_its_own_is_cut_over_the_target_s_ids(tmp_path, tiny_model):
    """convert-eagle writes such a head; its embedding has more rows than its own vocabulary."""
    from ranvier.cli.main import main

    folder = tmp_path / "whole"
    words = ["convert-eagle", str(HEADS / "eagle3"), "--target", str(tiny_model)]
    assert main([*words, "--output", str(folder)]) in (0, None)
    checkpoint = open_checkpoint(tiny_model)
    head, draft = open_eagle(folder, checkpoint, resolve(checkpoint.config))
    assert draft.eagle.has_embed and draft.eagle.is_reduced
    packed = dict(pack_draft(head, draft, Form("float32", "reference"), Parallel(4)))
    whole = dict(pack_draft(head, draft, Form("float32", "reference"), ONE))["draft.embed"][0]
    together = np.concatenate(packed["draft.embed"], axis=2)
    np.testing.assert_array_equal(together[:, :, : whole.shape[2]], whole)
