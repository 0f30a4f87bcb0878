"""Text: any split streams identically; templates are sandboxed and bounded."""

from __future__ import annotations

import json

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


def sentencepiece_codec():
    """Byte fallback, as Llama 2 and Gemma have: pieces with spaces, bytes for the rest."""
    words = ["<unk>", "</s>", "\u2581", "\u2581the", "a", "b", "th", "e"]
    vocab = [*words, *(f"<0x{value:02X}>" for value in range(256))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": 1, "content": "</s>", "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)}, "merges": [],
                  "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": False,
                  "ignore_merges": False},
        "truncation": None, "padding": None,
    }  # fmt: skip
    return TextCodec(json.dumps(tokenizer), CONFIG, {}, vocab_size=264, model_len_max=64)


SENTENCEPIECE = sentencepiece_codec()


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(1, 258), max_size=24),
    cuts=st.lists(st.integers(0, 24), max_size=6),
    codec=st.sampled_from([CODEC, SENTENCEPIECE]),
    stop=st.sampled_from([None, "a", "\ufffd", "ab"]),
    keeps=st.booleans(),
)
def test_any_ids_even_no_text_at_all_stream_the_same_whatever_the_split(
    ids, cuts, codec, stop, keeps
):
    def run(bounds):
        params = SamplingParams(stop=stop, include_stop_str_in_output=keeps)
        detokenizer = Detokenizer(codec, params)
        deltas = [detokenizer.feed(ids[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
        deltas.append(detokenizer.finish())
        return "".join(d.text for d in deltas), [d.stop_string for d in deltas if d.stop_string]

    whole = run([0, len(ids)])
    assert run([0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]) == whole
    assert run(list(range(len(ids) + 1))) == whole
    if stop is None and codec is CODEC:
        assert whole[0] == codec.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=12))
def test_byte_fallback_gives_back_every_text(text):
    ids = SENTENCEPIECE.encode(text)
    detokenizer = Detokenizer(SENTENCEPIECE, SamplingParams())
    parts = [detokenizer.feed([i]).text for i in ids]
    assert "".join(parts) + detokenizer.finish().text == text.replace("\u2581", " ")
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(parts)


def test_the_output_ends_the_character_that_the_prompt_began():
    first, second = CODEC.encode("é")
    tail = CODEC.open_tail([*CODEC.encode("caf"), first])
    assert Detokenizer(CODEC, SamplingParams(), before=tail).feed([second]).text == "é"
    assert CODEC.open_tail(CODEC.encode("café")) == b""
    assert CODEC.open_tail([second]) == b""


def test_stop_strings_count_from_min_tokens_and_only_their_beginnings_are_held_back():
    ids = CODEC.encode("xaxaxb")
    detokenizer = Detokenizer(CODEC, SamplingParams(stop="xa", min_tokens=3))
    deltas = [detokenizer.feed([i]) for i in ids] + [detokenizer.finish()]
    assert "".join(d.text for d in deltas) == "xaxaxb"  # the second "xa" began before min_tokens
    held = Detokenizer(CODEC, SamplingParams(stop="ab"))
    assert held.feed(CODEC.encode("xya")).text == "xy"


def test_a_decoder_that_is_not_made_of_bytes_is_named():
    from tokenizers import Tokenizer, decoders

    tokenizer = Tokenizer.from_str(CODEC.tokenizer.to_str())
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="WordPiece"):
        TextCodec(tokenizer.to_str(), CONFIG, {}, vocab_size=1, model_len_max=1)
