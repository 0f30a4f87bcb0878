"""Every sampling parameter is honoured, on a real tiny model through LLM."""

from __future__ import annotations

import math

import pytest

from ranvier import SamplingParams
from ranvier.core.errors import RequestError

PROMPT = {"prompt_token_ids": [1, 20, 30, 40, 50]}


def run(llm, count=1, **params):
    params = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, **params}
    return llm.generate([PROMPT] * count, SamplingParams(**params), use_tqdm=False)


def ids(llm, **params):
    return run(llm, **params)[0].outputs[0].token_ids


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_full_batch(llm):
    alone = ids(llm, temperature=1.0, seed=7)
    mixed = [SamplingParams(temperature=1.0, seed=s, max_tokens=12, ignore_eos=True) for s in
             (3, 7, 11, 5, 2)]  # fmt: skip
    others = [{"prompt_token_ids": list(range(5, 5 + n))} for n in (9, 40, 3, 70)]
    outs = llm.generate([others[0], PROMPT, *others[1:]], mixed, use_tqdm=False)
    assert outs[1].outputs[0].token_ids == alone
    assert ids(llm, temperature=1.0, seed=8) != alone


def test_top_k_1_and_tiny_top_p_and_full_min_p_are_greedy(llm):
    greedy = ids(llm)
    for params in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert ids(llm, temperature=1.0, seed=1, **params) == greedy


def test_top_k_draws_only_among_the_k_best(llm):
    out = run(llm, temperature=5.0, top_k=3, logprobs=3, seed=4, max_tokens=40)[0].outputs[0]
    assert all(entry[t].rank <= 3 for t, entry in zip(out.token_ids, out.logprobs, strict=True))


def test_logit_bias_and_allowed_and_bad_words_and_bans_steer(llm):
    first = ids(llm)[0]
    assert ids(llm, logit_bias={77: 100.0}) == [77] * 12
    assert first not in ids(llm, logit_bias={first: -100.0})
    assert set(ids(llm, allowed_token_ids=[60, 61], temperature=1.0, seed=2)) <= {60, 61}
    letters = list(range(40, 60))
    letter = ids(llm, allowed_token_ids=letters)[0]
    word = llm.get_tokenizer().decode([letter])
    assert letter not in ids(llm, allowed_token_ids=letters, bad_words=[word])


def test_penalties_make_repetition_rare(llm):
    for params in (
        {"repetition_penalty": 1e6},
        {"presence_penalty": 2.0, "logit_bias": {}},
        {"frequency_penalty": 2.0},
    ):
        out = run(llm, max_tokens=30, **params)[0].outputs[0].token_ids
        assert len(set(out)) > len(set(ids(llm, max_tokens=30))) or len(set(out)) >= 29


def test_stop_token_ids_end_and_are_named(llm):
    free = ids(llm)
    out = run(llm, stop_token_ids=[free[4]])[0].outputs[0]
    assert out.token_ids == free[: free.index(free[4]) + 1]
    assert (out.finish_reason, out.stop_reason) == ("stop", free[4])
    held = run(llm, stop_token_ids=[free[0]], min_tokens=3)[0].outputs[0]
    assert len(held.token_ids) >= 3
    assert free[0] not in held.token_ids[:3]


def test_stop_strings_cut_the_text(llm):
    text = run(llm)[0].outputs[0].text
    stop = text[3:5]
    out = run(llm, stop=stop)[0].outputs[0]
    assert out.text == text[: text.index(stop)]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    kept = run(llm, stop=[stop], include_stop_str_in_output=True)[0].outputs[0]
    assert kept.text == text[: text.index(stop) + len(stop)]


def test_n_and_best_of(llm):
    outs = run(llm, n=3, temperature=1.0, seed=1)[0].outputs
    assert len({tuple(o.token_ids) for o in outs}) == 3
    best = run(llm, n=1, best_of=3, temperature=1.0, seed=1, logprobs=0)[0].outputs
    sums = [
        o.cumulative_logprob for o in run(llm, n=3, temperature=1.0, seed=1, logprobs=0)[0].outputs
    ]
    assert len(best) == 1
    assert best[0].cumulative_logprob == pytest.approx(max(sums), abs=1e-4)


def test_logprobs_are_a_distribution_and_prompt_logprobs_agree(llm):
    out = run(llm, logprobs=20, max_tokens=5)[0]
    for token, entry in zip(out.outputs[0].token_ids, out.outputs[0].logprobs, strict=True):
        values = [e.logprob for e in entry.values()]
        assert sum(math.exp(v) for v in values) <= 1.0 + 1e-5
        assert entry[token].rank == 1
        assert values == sorted(values, reverse=True)
    whole = PROMPT["prompt_token_ids"] + out.outputs[0].token_ids
    scored = llm.generate(
        {"prompt_token_ids": whole}, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False
    )[0]
    assert scored.prompt_logprobs[0] is None
    assert len(scored.prompt_logprobs) == len(whole)
    for token, entry, own in zip(
        whole[5:], scored.prompt_logprobs[5:], out.outputs[0].logprobs, strict=True
    ):
        assert entry[token].logprob == pytest.approx(own[token].logprob, abs=1e-4)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 126, 127])
def test_lengths_at_every_edge_run_to_the_model_length(llm, length):
    prompt = {"prompt_token_ids": [3 + i % 100 for i in range(length)]}
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    out = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    assert len(out.token_ids) == 128 - length
    assert out.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "match"),
    [([], "empty"), ([160], "not in"), ([-1], "not in"), (list(range(3, 131)), "128 tokens")],
)
def test_bad_prompts_are_refused(llm, prompt, match):
    with pytest.raises(RequestError, match=match):
        llm.generate({"prompt_token_ids": prompt}, use_tqdm=False)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1},
        {"top_k": -2}, {"min_p": 2}, {"n": 0}, {"n": 10**9}, {"best_of": 0}, {"max_tokens": -1},
        {"min_tokens": 99}, {"logprobs": 21}, {"presence_penalty": 3}, {"stop": [""]},
        {"repetition_penalty": 0}, {"logit_bias": {1: float("inf")}}, {"allowed_token_ids": []},
        {"seed": 2**64}, {"truncate_prompt_tokens": 0},
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(params):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert caught.value.param in params


def test_truncation_only_when_asked(llm):
    long = {"prompt_token_ids": list(range(3, 150))}
    params = SamplingParams(max_tokens=2, truncate_prompt_tokens=10)
    out = llm.generate(long, params, use_tqdm=False)[0]
    assert out.prompt_token_ids == list(range(140, 150))
