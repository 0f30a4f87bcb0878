"""Data sets: exact lengths, equal for equal seeds, faults by file and line."""

from __future__ import annotations

import json

import pytest
from tests.conftest import TEMPLATE, byte_tokenizer

from ranvier.bench.dataset import make_samples
from ranvier.bench.options import DataOptions, RandomOptions
from ranvier.core.errors import ConfigError
from ranvier.text.codec import TextCodec


@pytest.fixture(scope="module")
def codec():
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    return TextCodec(byte_tokenizer(160), config, {}, vocab_size=160, model_len_max=2**31)


def make(codec, lengths=None, *, is_chat=False, **data):
    return make_samples(
        DataOptions(**data), RandomOptions(**(lengths or {})), codec, is_chat=is_chat
    )


def test_random_prompts_have_exact_lengths_and_no_special_ids(codec):
    lengths = {"random_input_len": 20, "random_output_len": 7, "random_prefix_len": 5}
    samples = make(codec, lengths, num_prompts=30)
    assert len(samples) == 30
    assert {(len(s.prompt), s.input_len, s.output_len) for s in samples} == {(25, 25, 7)}
    assert len({tuple(s.prompt[:5]) for s in samples}) == 1
    assert len({tuple(s.prompt[5:]) for s in samples}) == 30
    assert all(3 <= token < 160 for s in samples for token in s.prompt)


def test_a_range_ratio_spreads_both_lengths_around_the_asked(codec):
    lengths = {"input_len": 20, "output_len": 10, "random_range_ratio": 0.5}
    samples = make(codec, lengths, num_prompts=300)
    assert (min(s.input_len for s in samples), max(s.input_len for s in samples)) == (10, 30)
    assert (min(s.output_len for s in samples), max(s.output_len for s in samples)) == (5, 15)


def test_the_seed_decides(codec):
    first, same, other = (make(codec, num_prompts=2, seed=seed) for seed in (1, 1, 2))
    assert first == same != other


def test_prefixes_repeat_in_groups(codec):
    lengths = {"prefix_repetition_prefix_len": 6, "prefix_repetition_suffix_len": 3,
               "prefix_repetition_num_prefixes": 4, "prefix_repetition_output_len": 2}  # fmt: skip
    samples = make(codec, lengths, dataset_name="prefix_repetition", num_prompts=12)
    assert {(len(s.prompt), s.output_len) for s in samples} == {(9, 2)}
    prefixes = [tuple(s.prompt[:6]) for s in samples]
    assert sorted(prefixes.count(p) for p in set(prefixes)) == [3, 3, 3, 3]
    with pytest.raises(ConfigError, match="below 4 prefixes"):
        make(codec, lengths, dataset_name="prefix_repetition", num_prompts=3)


def test_a_chat_gets_text(codec):
    samples = make(codec, {"input_len": 9}, is_chat=True, num_prompts=3)
    assert all(isinstance(s.prompt, str) for s in samples)


def conversation(*texts):
    return {"conversations": [{"from": "x", "value": text} for text in texts]}


def test_sharegpt_takes_first_turns_within_its_bounds(codec, tmp_path):
    path = tmp_path / "s.json"
    items = [
        conversation("question", "theanswer", "more"), conversation("ab", "theanswer"),
        conversation("question", "no"), conversation("alone"), conversation("q" * 1025, "answer"),
        {"other": 1}, conversation("second", "x" * 40),
    ]  # fmt: skip
    path.write_text(json.dumps(items))
    options = {"dataset_name": "sharegpt", "dataset_path": str(path), "disable_shuffle": True}
    samples = make(codec, num_prompts=2, **options)
    assert [(s.prompt, s.input_len, s.output_len) for s in samples] == [
        ("question", 8, 9), ("second", 6, 40),
    ]  # fmt: skip
    fixed = make(codec, num_prompts=3, sharegpt_output_len=5, **options)
    assert [(s.prompt, s.output_len) for s in fixed] == [
        ("question", 5), ("question", 5), ("second", 5),
    ]  # fmt: skip
    assert len(make(codec, num_prompts=9, **options)) == 9
    assert len(make(codec, num_prompts=9, oversample=False, **options)) == 2


def test_custom_lines_get_the_template_unless_told(codec, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "one", "output_tokens": 3}\n\n{"prompt": "two"}\n')
    options = {"dataset_name": "custom", "dataset_path": str(path), "disable_shuffle": True}
    plain = make(codec, num_prompts=2, skip_chat_template=True, **options)
    assert [(s.prompt, s.input_len, s.output_len) for s in plain] == [
        ("one", 3, 256), ("two", 3, 256),
    ]  # fmt: skip
    wrapped = make(codec, num_prompts=1, **options)
    assert wrapped[0].prompt == "[user]one[assistant]"
    assert make(codec, is_chat=True, num_prompts=1, **options)[0].prompt == "one"
    with pytest.raises(ConfigError, match="c.jsonl, line 3.*output_tokens"):
        make(codec, num_prompts=2, custom_output_len=-1, **options)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("custom", "{", "line 1: not valid JSON"),
        ("custom", '{"prompt": 5}', 'line 1: has no text "prompt"'),
        ("custom", "[]", 'has no text "prompt"'),
        ("custom", "", "no usable prompt"),
        ("sharegpt", "{}", "list of conversations"),
        ("sharegpt", "[", "not valid JSON"),
        ("sharegpt", "[1, null]", "no usable prompt"),
    ],
)
def test_a_bad_file_is_told_by_place(codec, tmp_path, name, text, said):
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        make(codec, dataset_name=name, dataset_path=str(path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_name": "hf"}, "known: random"),
        ({"dataset_name": "custom"}, "needs --dataset-path"),
        ({"dataset_path": "x"}, "takes no --dataset-path"),
        ({"num_prompts": 0}, "at least 1"),
        ({"dataset_name": "custom", "dataset_path": "/nowhere/x"}, "/nowhere/x"),
    ],
)
def test_options_that_make_no_sense_are_refused(codec, options, said):
    with pytest.raises(ConfigError, match=said):
        make(codec, **options)
    with pytest.raises(ConfigError):
        RandomOptions(random_range_ratio=1.0)
    with pytest.raises(ConfigError):
        RandomOptions(input_len=0)
