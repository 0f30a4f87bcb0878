"""Greedy tokens of the demo model are the same with and without guesses, in f32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

GOLDENS = Path(__file__).parent / "goldens"
MODEL = "smollm2-135m"
METHODS = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 4},
    "itself": {"method": "draft_model", "model": MODEL, "num_speculative_tokens": 4},
    "int4": {
        "method": "draft_model", "model": MODEL, "quantization": "int4",
        "num_speculative_tokens": 4,
    },
}  # fmt: skip
SIZES = [(8, 32), pytest.param(32, 128, marks=pytest.mark.long)]


def prompts(count):
    """Those of the goldens, and as many that repeat their own text."""
    rows = json.loads((GOLDENS / f"{MODEL}.json").read_text())["rows"][: count // 2]
    ids = [row["prompt_ids"] for row in rows]
    return [{"prompt_token_ids": own} for one in ids for own in (one, one * 3)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "tokens"), SIZES)
def test_greedy_with_guesses_is_greedy_without(method, count, tokens, tmp_path_factory):
    from ranvier import LLM, SamplingParams

    folder = tmp_path_factory.getbasetemp() / "speculation"
    options = {
        "dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "artifacts": str(folder),
        "max_num_batched_tokens": 64,
    }  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    found = []
    for config in (None, METHODS[method]):
        with LLM(MODEL, **options, speculative_config=config) as llm:
            policy = llm._engine.scheduler.speculation.policy
            policy.choose = lambda rows, rooms: 4 if any(rooms) else 0
            outputs = llm.generate(prompts(count), params, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
            accepted = llm.stats().accepted_tokens
    assert found[0] == found[1]
    assert accepted > count
