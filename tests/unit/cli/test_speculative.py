"""speculative_config: vLLM's fields are honoured, announced or refused by name; nothing is lost."""

from __future__ import annotations

import json

import pytest

from ranvier.cli.options.settings import parse_options
from ranvier.cli.options.speculative import Speculative, read_speculative
from ranvier.core.buckets import BucketSet
from ranvier.core.errors import ConfigError


def test_nothing_given_is_nothing():
    assert read_speculative(None) is None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"method": "ngram"}, Speculative(method="ngram", count=4)),
        ({"model": "[ngram]"}, Speculative(method="ngram", count=4)),
        (
            {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 3},
            Speculative(method="ngram", count=7, lookup_min=2, lookup_max=3),
        ),
        (
            {"method": "ngram", "prompt_lookup_max": 1},
            Speculative(method="ngram", count=4, lookup_min=1, lookup_max=1),
        ),
        (
            {"method": "ngram", "prompt_lookup_min": 8},
            Speculative(method="ngram", count=4, lookup_min=8, lookup_max=8),
        ),
        (
            {"model": "d", "quantization": "int4", "revision": "main", "method": None},
            Speculative(method=None, model="d", count=4, quantization="int4", revision="main"),
        ),
        (
            {"method": "eagle3", "model": "head", "speculative_token_tree": "[(0,), (0, 0)]"},
            Speculative(method="eagle3", model="head", count=4),
        ),
    ],
)
def test_what_is_honoured(given, found):
    assert read_speculative(given) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither a method nor a model"),
        ({"method": "ngrams"}, "Did you mean ngram"),
        ({"method": "medusa", "model": "m"}, "method is 'medusa'"),
        ({"method": "draft_model"}, "draft_model needs a model"),
        ({"method": "ngram", "model": "m"}, "ngram needs no model"),
        ({"method": "ngram", "num_speculative_token": 3}, "Did you mean num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "positive integer, is 0"),
        ({"method": "ngram", "num_speculative_tokens": True}, "positive integer, is True"),
        ({"method": "ngram", "num_speculative_tokens": 17}, "=17; at most 16"),
        ({"method": "ngram", "prompt_lookup_min": 4, "prompt_lookup_max": 3}, "above prompt"),
        ({"model": "m", "prompt_lookup_max": 3}, "are of the method ngram"),
        ({"model": 3}, "model must be text, is 3"),
        ({"model": "m", "parallel_drafting": True}, "parallel_drafting=True is not supported"),
        ({"model": "m", "rejection_sample_method": "synthetic"}, "synthetic"),
        ({"model": "m", "speculative_token_tree": "[(0,), (1,)]"}, "has branches"),
        ({"model": "m", "speculative_token_tree": "x("}, "no list of paths"),
    ],
)
def test_what_is_refused_is_named(given, message):
    with pytest.raises(ConfigError) as caught:
        read_speculative(given)
    assert message in caught.value.message


def test_what_changes_nothing_is_said():
    lines = []
    given = {"method": "ngram", "disable_by_batch_size": 8, "rejection_sample_method": "standard"}
    assert read_speculative(given, lines.append) is not None
    assert len(lines) == 2 and all("changes nothing" in line for line in lines)


def test_the_option_takes_json_and_is_checked_at_once():
    given = json.dumps({"method": "ngram", "num_speculative_tokens": 3})
    assert parse_options({"model": "m", "speculative-config": given}).speculative_config == {
        "method": "ngram", "num_speculative_tokens": 3,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="Did you mean ngram"):
        parse_options({"model": "m", "speculative_config": {"method": "ngrm"}})


def test_buckets_say_what_is_verified_and_drafted():
    from ranvier.cli.drafting import with_drafts

    ragged, unragged = BucketSet(tokens=(8,)), BucketSet(prefill_tokens=(8,), contexts=(32,))
    host = Speculative(method="ngram", count=5)
    device = Speculative(method="draft_model", model="m", count=5)
    assert with_drafts(ragged, None) == ragged
    assert with_drafts(ragged, host) == BucketSet(tokens=(8,), lookahead=5)
    assert with_drafts(ragged, device).drafts == (1, 2, 5)
    assert with_drafts(unragged, host).drafts == with_drafts(unragged, device).drafts == (5,)
    assert with_drafts(unragged, device).has_drafter
