"""Guessing beside everything else: scarce blocks, shared prefixes, quantised targets, pictures."""

from __future__ import annotations

import pytest
from tests.engine.test_pictures_llm import MARK, picture, prompt, seeing
from tests.engine.test_speculation import K, always, ask, prompts
from tests.numerics.isa import NEEDS_KERNELS

from ranvier import LLM, SamplingParams
from ranvier.core.errors import ConfigError

__all__ = ["seeing"]

METHODS = {
    "ngram": {"method": "ngram", "num_speculative_tokens": K, "prompt_lookup_min": 1},
    "draft_model": {"method": "draft_model", "num_speculative_tokens": K},
}


def config(method, model):
    return METHODS[method] if method == "ngram" else {**METHODS[method], "model": model}


def guessing(options, method):
    llm = LLM(**options, speculative_config=config(method, options["model"]))
    llm._engine.scheduler.speculation.policy.choose = always
    return llm


@pytest.fixture(scope="module")
def scarce(tiny_options):
    """Blocks for two sequences of their full length, where four run; prompts go in chunks."""
    return {
        **tiny_options, "max_model_len": 96, "num_gpu_blocks_override": 7,
        "max_num_batched_tokens": 24, "enable_prefix_caching": True,
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["greedy", "several"])
def test_scarce_blocks_and_shared_prefixes_change_no_token(scarce, method, mode):
    asked = [*prompts(4), *([list(range(3, 3 + 70))] * 3)]
    with LLM(**scarce) as plain, guessing(scarce, method) as llm:
        wanted = ask(plain, asked, mode, max_tokens=24, prompt_logprobs=None)
        assert ask(llm, asked, mode, max_tokens=24, prompt_logprobs=None) == wanted
        stats = llm.stats()
        assert stats.accepted_tokens > 0 and stats.prefix_hits > 0 and stats.preemptions > 0
        assert stats.blocks_free == stats.blocks_total


@NEEDS_KERNELS
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantised_target_has_its_own_tokens_with_guesses(tiny_options, method, scheme):
    options = {
        **tiny_options, "dtype": "bfloat16", "quantization": scheme, "max_model_len": 96,
    }  # fmt: skip
    with LLM(**options) as plain, guessing(options, method) as llm:
        for mode in ("greedy", "drawn"):
            assert ask(llm, prompts(4), mode) == ask(plain, prompts(4), mode)
        assert llm.stats().accepted_tokens > 0


def test_pictures_and_guesses_of_the_text(seeing):
    """Placeholders are never guessed; what follows a picture is verified as ever."""
    asked = [
        prompt(f"w10 {MARK} w11 w10 w11 w10", picture(1)),
        prompt(f"{MARK} w20 w21 {MARK} w20 w21", picture(2), picture(3)),
        "w7 w8 w7 w8 w7",
    ]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    wanted = seeing.generate(asked, params, use_tqdm=False)
    with LLM(**seeing.options, speculative_config=METHODS["ngram"]) as llm:
        llm._engine.scheduler.speculation.policy.choose = always
        got = llm.generate(asked, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in got] == [o.outputs[0].token_ids for o in wanted]
        assert llm.stats().accepted_tokens > 0


def test_a_drafter_beside_pictures_is_refused_by_name(seeing):
    model = seeing.options["model"]
    with pytest.raises(ConfigError, match="sees pictures has no drafter") as caught:
        LLM(**seeing.options, speculative_config=config("draft_model", model))
    assert "ngram" in caught.value.hint
