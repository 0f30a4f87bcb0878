"""Greedy tokens of the real models equal transformers' in f32, up to near-ties of the logits.

Goldens: tests/real/make_goldens.py. A model is downloaded once, by its demo name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

GOLDENS = Path(__file__).parent / "goldens"
TIE = 1e-3
"""Where the two best logits are closer than this, either token is right (issue's bar)."""


def _models() -> list[str]:
    names = os.environ.get("RANVIER_TEST_REAL", "smollm2-135m")
    return names.split(",")


def _first_difference(row: dict, token_ids: list[int]) -> int | None:
    for i, (want, got) in enumerate(zip(row["token_ids"], token_ids, strict=True)):
        if want != got:
            return i
    return None


@pytest.mark.parametrize("name", _models())
def test_greedy_tokens_equal_transformers_f32(name, tmp_path):
    from ranvier import LLM, SamplingParams

    rows = json.loads((GOLDENS / f"{name}.json").read_text())["rows"]
    llm = LLM(name, dtype="float32", max_model_len=256, max_num_seqs=16, artifacts=str(tmp_path))
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in rows]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    wrong = []
    for row, output in zip(rows, outputs, strict=True):
        at = _first_difference(row, list(output.outputs[0].token_ids))
        if at is not None and row["gaps"][at] >= TIE:
            wrong.append((row["prompt"], at, row["gaps"][at]))
    assert not wrong
    llm.close()


@pytest.mark.parametrize("name", _models())
def test_tokenizer_gives_the_ids_of_transformers(name):
    from tokenizers import Tokenizer

    from ranvier.cli.wire import locate
    from ranvier.weights.checkpoint import open_checkpoint

    tokenizer = Tokenizer.from_str(open_checkpoint(locate(name)).tokenizer_json())
    for row in json.loads((GOLDENS / f"{name}.json").read_text())["rows"]:
        assert tokenizer.encode(row["prompt"]).ids == row["prompt_ids"]
