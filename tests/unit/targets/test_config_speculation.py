"""NxDI's speculation fields and vLLM's speculative_config say one thing, or are one error."""

from __future__ import annotations

import pytest

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.translate import translate

DRAFT = {"model": "draft"}


def asked(override, config=None):
    plain = {} if config is None else {"speculative_config": config}
    return translate(None, override, plain, {}).options.get("speculative_config")


@pytest.mark.parametrize(
    ("override", "config", "found"),
    [
        ({}, DRAFT, None),
        ({"speculation_length": 0, "enable_fused_speculation": False}, None, None),
        (
            {"speculation_length": 5, "enable_fused_speculation": True},
            DRAFT,
            {"model": "draft", "num_speculative_tokens": 5},
        ),
        (
            {"speculation_length": 3},
            {"method": "ngram", "num_speculative_tokens": 3},
            {"method": "ngram", "num_speculative_tokens": 3},
        ),
        ({"enable_eagle_speculation": True}, DRAFT, {"model": "draft", "method": "eagle"}),
        (
            {"enable_eagle_speculation": True, "is_eagle3": True},
            DRAFT,
            {"model": "draft", "method": "eagle3"},
        ),
        (
            {"enable_eagle_speculation": True},
            {"model": "draft", "method": "eagle3"},
            {"model": "draft", "method": "eagle3"},
        ),
        ({"enable_eagle_draft_input_norm": True}, None, None),
    ],
)
def test_the_fields_join_the_config(override, config, found):
    assert asked(override, config) == found


@pytest.mark.parametrize(
    ("override", "config", "message"),
    [
        ({"speculation_length": 4}, None, "names no draft"),
        ({"enable_fused_speculation": True}, None, "names no draft"),
        (
            {"speculation_length": 4},
            {"model": "m", "num_speculative_tokens": 3},
            "num_speculative_tokens = 3",
        ),
        ({"enable_eagle_speculation": True}, {"method": "ngram"}, "method = 'ngram'"),
        ({"is_eagle3": True}, {"model": "m", "method": "eagle"}, "method = 'eagle'"),
        ({"token_tree_config": {"0": ["1", "2"]}}, DRAFT, "chains"),
        ({"is_medusa": True}, None, "Medusa"),
    ],
)
def test_what_contradicts_is_named(override, config, message):
    with pytest.raises(ConfigError) as caught:
        asked(override, config)
    assert message in caught.value.message
