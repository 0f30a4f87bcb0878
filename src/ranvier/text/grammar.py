"""Grammars: structured outputs by llguidance, over the bytes of our own tokens.

A grammar is read lazily: each mask takes a bounded share of work (llguidance's LLParserLimits), and
a grammar that needs more than that ends its own request.
"""

from __future__ import annotations

import json
from typing import Any

import llguidance
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError, RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.structured import StructuredOutputsParams
from ranvier.text.codec import TextCodec

__all__ = ["GrammarMatcher", "Grammars", "check_grammar"]

WHITESPACE = r"[\x20\x0A]{0,2}"
"""Between the parts of a JSON text, unless a request says otherwise: it must not go on for ever."""


class Grammars:
    """Makes matchers for one model's tokens; the table of its tokens is made at first use."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokenizer: LLTokenizer | None = None
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def matcher(self, params: StructuredOutputsParams) -> GrammarMatcher:
        """A matcher at the start. Raises RequestError for a grammar that is wrong."""
        grammar = _grammar(params)
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        found = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if found.is_error():
            raise _wrong(_in_a_line(found.get_error()))
        words = -(-self._codec.vocab_size // 32)
        return GrammarMatcher(found, frozenset(self._codec.end_token_ids), words)

    def _make_tokenizer(self) -> LLTokenizer:
        if not self._codec.end_token_ids:
            raise ConfigError("Structured outputs need a model with an end token.")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._codec))
        return LLTokenizer(wrapper, eos_token=self._codec.end_token_ids)


def check_grammar(params: StructuredOutputsParams) -> None:
    """Read a grammar without a model's tokens. Raises RequestError for one that is wrong."""
    error = LLMatcher.validate_grammar(_grammar(params), None)
    if error:
        raise _wrong(_in_a_line(error))


class GrammarMatcher:
    """core.structured.Matcher over an LLMatcher."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], words: int) -> None:
        self._matcher = matcher
        self._ends = ends
        self._words = words

    def fresh(self) -> GrammarMatcher:
        copy = self._matcher.deep_copy()
        copy.reset()
        return GrammarMatcher(copy, self._ends, self._words)

    def mask(self) -> NDArray[np.uint32]:
        # The library's mask may have a word more than the vocabulary needs.
        return np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]

    def advance(self, token: int) -> bool:
        return bool(self._matcher.consume_token(token))

    def rollback(self, count: int) -> None:
        self._matcher.rollback(count)

    def permitted(self, tokens: list[int]) -> int:
        count = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        return int(self._matcher.validate_tokens(tokens[:count]))


class _Tokens:
    """The model's tokens as llguidance asks for them."""

    bos_token_id = None

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self.eos_token_id = codec.end_token_ids[0]
        self.tokens = [codec.pieces[i] for i in range(codec.vocab_size)]
        self.special_token_ids = sorted({*codec.pieces.special, *codec.end_token_ids})

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return self._codec.encode(text, add_special_tokens=False)


def _grammar(params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's form. Raises RequestError."""
    grammar = _in_form(params)
    if len(grammar) > LIMITS.grammar_chars_max:
        raise _wrong(f"the grammar is longer than {LIMITS.grammar_chars_max} characters.")
    return grammar


def _in_form(params: StructuredOutputsParams) -> str:
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.grammar is not None:
        return LLMatcher.grammar_from_lark(params.grammar)
    if params.choice is not None:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice)
        return LLMatcher.grammar_from_lark(f"start: {texts}")
    schema = params.json if params.json is not None else {"type": "object"}
    text = schema if isinstance(schema, str) else json.dumps(schema)
    overrides: Any = {"whitespace_pattern": WHITESPACE}
    if params.whitespace_pattern is not None:
        overrides = {"whitespace_pattern": params.whitespace_pattern}
    if params.disable_any_whitespace:
        overrides = {"whitespace_flexible": False}
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=overrides)
    except (ValueError, RecursionError):
        raise _wrong("json is no JSON Schema.") from None


def _in_a_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _wrong(reason: str) -> RequestError:
    return RequestError(f"structured_outputs: {reason}", param="structured_outputs")
