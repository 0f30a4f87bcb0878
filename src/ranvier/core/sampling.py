"""SamplingParams: what a request asks of each token, validated once.

vLLM's names and defaults (see docs/sampling.md). Knows nothing of HTTP or of the engine.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.core.structured import StructuredOutputsParams

__all__ = ["SamplingParams"]

_SEED_MAX = 2**63
_COUNT_MAX = 2**31
_BIAS_MAX = 100


OUTPUT_KINDS = ("CUMULATIVE", "FINAL_ONLY", 0, 2)
UNSUPPORTED = {
    "output_kind": "generate returns whole outputs (CUMULATIVE, FINAL_ONLY); the server streams",
    "flat_logprobs": "log-probabilities come as one dict a position",
    "prompt_logprob_token_ids": "prompt_logprobs returns the most likely tokens",
    "prompt_logprob_start": "prompt_logprobs starts at the first token",
    "logprob_token_ids": "logprobs returns the most likely tokens",
    "stream_interval": "every token is streamed",
    "guided_decoding": "use structured_outputs=StructuredOutputsParams(...)",
    "extra_args": "there is no custom code in the sampling loop",
    "skip_reading_prefix_cache": "give the prompt a cache_salt of its own",
    "thinking_token_budget": "reasoning is not budgeted yet",
    "repetition_detection": "use the penalties, stop or max_tokens",
}
"""vLLM's fields that are known and refused when set, and why."""


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Sampling options of one request, with vLLM's names and defaults.

    `max_tokens` None means: up to the model's length. `logprobs` counts the top entries returned
    per token. `best_of` draws that many and returns the `n` of highest mean log-probability.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    output_kind: Any = None
    flat_logprobs: Any = None
    prompt_logprob_token_ids: Any = None
    prompt_logprob_start: Any = None
    logprob_token_ids: Any = None
    stream_interval: Any = None
    guided_decoding: Any = None
    extra_args: Any = None
    skip_reading_prefix_cache: Any = None
    thinking_token_budget: Any = None
    repetition_detection: Any = None

    def __post_init__(self) -> None:
        _check_support(self)
        _check_ranges(self)
        _check_counts(self)
        _check_lists(self)
        _check_structured(self)

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def sequence_count(self) -> int:
        """How many sequences are generated: best_of, else n."""
        return self.best_of or self.n

    def replace(self, **changes: Any) -> SamplingParams:
        return msgspec.structs.replace(self, **changes)


def _require(is_ok: bool, param: str, value: object, rule: str) -> None:
    if not is_ok:
        raise RequestError(f"{param} must be {rule}, got {value!r}.", param=param)


def _check_support(p: SamplingParams) -> None:
    for name, reason in UNSUPPORTED.items():
        value = getattr(p, name)
        if value is None or value is False or value == {} or value == []:
            continue
        if name == "output_kind" and getattr(value, "name", value) in OUTPUT_KINDS:
            continue
        raise RequestError(f"{name} is not supported: {reason}.", param=name)


def _check_ranges(p: SamplingParams) -> None:
    rules: tuple[tuple[str, float, float, str], ...] = (
        ("presence_penalty", -2, 2, "in [-2, 2]"),
        ("frequency_penalty", -2, 2, "in [-2, 2]"),
        ("temperature", 0, math.inf, "a finite number >= 0"),
        ("repetition_penalty", 0, 1e6, "in (0, 1e6]"),
        ("min_p", 0, 1, "in [0, 1]"),
        ("top_p", 0, 1, "in (0, 1]"),
    )
    for name, low, high, rule in rules:
        value = getattr(p, name)
        _require(math.isfinite(value) and low <= value <= high, name, value, rule)
    _require(p.top_p > 0, "top_p", p.top_p, "in (0, 1]")
    _require(p.repetition_penalty > 0, "repetition_penalty", p.repetition_penalty, "in (0, 1e6]")


def _check_counts(p: SamplingParams) -> None:
    if p.top_k == -1:
        p.top_k = 0
    _require(0 <= p.top_k < _COUNT_MAX, "top_k", p.top_k, "-1, 0 (off) or in [1, 2**31)")
    _require(1 <= p.n <= LIMITS.n_max, "n", p.n, f"in [1, {LIMITS.n_max}]")
    if p.best_of is not None:
        rule = f"in [n, {LIMITS.n_max}]"
        _require(p.n <= p.best_of <= LIMITS.n_max, "best_of", p.best_of, rule)
    if p.max_tokens is not None:
        is_ok = 0 <= p.max_tokens < _COUNT_MAX
        _require(is_ok, "max_tokens", p.max_tokens, "in [0, 2**31)")
        is_ok = p.min_tokens <= p.max_tokens
        _require(is_ok, "min_tokens", p.min_tokens, f"at most max_tokens={p.max_tokens}")
    _require(0 <= p.min_tokens < _COUNT_MAX, "min_tokens", p.min_tokens, "in [0, 2**31)")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(p, name)
        is_ok = value is None or 0 <= value <= LIMITS.logprobs_max
        _require(is_ok, name, value, f"in [0, {LIMITS.logprobs_max}]")
    if p.seed is not None:
        _require(-_SEED_MAX <= p.seed < _SEED_MAX, "seed", p.seed, "a 64-bit integer")
    if p.truncate_prompt_tokens is not None:
        value = p.truncate_prompt_tokens
        is_ok = value == -1 or 1 <= value < _COUNT_MAX
        _require(is_ok, "truncate_prompt_tokens", value, "-1 or in [1, 2**31)")


def _check_structured(p: SamplingParams) -> None:
    if p.structured_outputs is None:
        return
    is_ok = isinstance(p.structured_outputs, StructuredOutputsParams)
    kind = type(p.structured_outputs).__name__
    _require(is_ok, "structured_outputs", kind, "a StructuredOutputsParams")
    for name in ("ignore_eos", "min_tokens"):
        if getattr(p, name):
            raise RequestError(
                f"{name} does not go with structured_outputs: a grammar says where a text may end.",
                param=name,
            )


def _plain_bias(p: SamplingParams) -> dict[int, float]:
    """logit_bias with ids as numbers, which JSON writes as text."""
    if not p.logit_bias:
        return {}
    try:
        p.logit_bias = {int(key): float(value) for key, value in p.logit_bias.items()}
    except (TypeError, ValueError, AttributeError):
        _require(False, "logit_bias", p.logit_bias, "token ids with numbers")
    return p.logit_bias


def _check_lists(p: SamplingParams) -> None:
    strings = p.stop_strings
    _require(
        len(strings) <= LIMITS.stop_strings_max,
        "stop",
        len(strings),
        f"at most {LIMITS.stop_strings_max} strings",
    )
    _require(all(strings), "stop", p.stop, "non-empty strings")
    words = p.bad_words or []
    _require(
        len(words) <= LIMITS.bad_words_max,
        "bad_words",
        len(words),
        f"at most {LIMITS.bad_words_max} words",
    )
    bias = _plain_bias(p)
    _require(
        len(bias) <= LIMITS.logit_bias_max,
        "logit_bias",
        len(bias),
        f"at most {LIMITS.logit_bias_max} entries",
    )
    is_ok = all(-_BIAS_MAX <= value <= _BIAS_MAX for value in bias.values())
    _require(is_ok, "logit_bias", bias, f"numbers in [-{_BIAS_MAX}, {_BIAS_MAX}]")
    if p.allowed_token_ids is not None:
        _require(len(p.allowed_token_ids) > 0, "allowed_token_ids", [], "a non-empty list")
