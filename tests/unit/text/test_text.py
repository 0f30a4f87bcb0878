"""Text: any split streams identically; templates are sandboxed and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.core.sampling import SamplingParams
from ranvier.text.codec import TextCodec
from ranvier.text.stream import Detokenizer
from ranvier.text.template import ChatTemplate

CONFIG = {"eos_token": {"content": "</s>"}}


def codec():
    from tests.conftest import byte_tokenizer

    return TextCodec(byte_tokenizer(259), CONFIG, {}, vocab_size=259, model_len_max=64)


CODEC = codec()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 120), max_size=8))
def test_any_split_of_any_text_streams_identically(text, cuts):
    ids = CODEC.encode(text)
    detokenizer = Detokenizer(CODEC, SamplingParams())
    bounds = [0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]
    parts = [detokenizer.feed(ids[a:b]).text for a, b in zip(bounds, bounds[1:], strict=False)]
    parts.append(detokenizer.finish().text)
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=3))
def test_a_stop_string_cuts_at_its_first_place_whatever_the_split(text, stop):
    detokenizer = Detokenizer(CODEC, SamplingParams(stop=stop))
    deltas = [detokenizer.feed([i]) for i in CODEC.encode(text)] + [detokenizer.finish()]
    found = text.find(stop)
    assert "".join(d.text for d in deltas) == (text if found < 0 else text[:found])
    assert any(d.stop_string == stop for d in deltas) == (found >= 0)


def test_a_truncated_character_comes_out_at_the_end():
    ids = CODEC.encode("é")[:1]
    detokenizer = Detokenizer(CODEC, SamplingParams())
    assert detokenizer.feed(ids).text == ""
    assert detokenizer.finish().text == "\ufffd"


def test_a_tokenizer_that_does_not_parse_is_a_typed_error():
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextCodec("{}", {}, {}, vocab_size=1, model_len_max=1)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('no system role') }}",
        "{{ messages.append(1) }}",
        "{{ messages[9].content.x }}",
    ],
)
def test_a_hostile_or_failing_template_is_a_request_error(source):
    template = ChatTemplate(source, {})
    with pytest.raises(RequestError):
        template.render([{"role": "user"}], add_generation_prompt=True, variables={})


def test_a_template_that_does_not_parse_names_its_line():
    with pytest.raises(RequestError, match="line 2"):
        ChatTemplate("x\n{% if %}", {})


def test_template_variables_may_not_replace_internals():
    with pytest.raises(RequestError, match="messages"):
        ChatTemplate("x", {}).render([], add_generation_prompt=True, variables={"messages": []})
