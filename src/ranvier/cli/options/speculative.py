"""speculative_config: how tokens are guessed, by vLLM's names, every field checked. No files."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ranvier.core.config import Method, SpeculationConfig
from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS

__all__ = ["Speculative", "read_speculative"]

METHODS = get_args(Method)
HOST = ("ngram", "[ngram]")
COUNT_DEFAULT = 4
LOOKUP_MIN, LOOKUP_MAX = 2, 5
OWN = (
    "method", "model", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max",
    "quantization", "revision", "speculative_token_tree",
)  # fmt: skip
_EXACT = "every token is the target's own, which is stricter than rejection sampling"
_CUT = "a draft is cut over the ranks of its target"
_CHOSEN = "the policy measures what guessing costs at every batch"
WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "rejection_sample_method": (("strict", "standard", "probabilistic"), _EXACT),
    "draft_sample_method": (("greedy", "probabilistic"), _EXACT),
    "draft_tensor_parallel_size": (None, _CUT),
    "tensor_parallel_size": (None, _CUT),
    "max_model_len": (None, "a draft guesses as far as the target goes"),
    "enforce_eager": (None, "every program is compiled ahead of time"),
    "disable_by_batch_size": (None, _CHOSEN),
    "disable_padded_drafter_batch": (None, _CHOSEN),
    "disable_logprobs": (None, "log-probabilities are the target's own and cost nothing more"),
    "parallel_drafting": ((False,), "drafts are made one after the other"),
    "code_revision": ((), "code that comes with a model is never run"),
    "attention_backend": ((), "the target has one attention kernel"),
    "use_heterogeneous_vocab": ((False,), "a draft model shares the target's vocabulary"),
}
"""vLLM's other fields: accepted values (None: any) and why they change nothing or can't be had."""


@dataclass(frozen=True, kw_only=True)
class Speculative:
    """What was asked for. `count`: tokens guessed a step, at most."""

    method: Method | None
    """None: what `model` turns out to be, a model or a head."""
    count: int
    model: str | None = None
    revision: str | None = None
    quantization: str | None = None
    lookup_min: int = LOOKUP_MIN
    lookup_max: int = LOOKUP_MAX

    @property
    def is_on_host(self) -> bool:
        return self.method == "ngram"

    def engine_config(self) -> SpeculationConfig:
        """What the engine has to know."""
        return SpeculationConfig(
            method=self.method or "draft_model", lookup_min=self.lookup_min,
            lookup_max=self.lookup_max,
        )  # fmt: skip


def read_speculative(
    given: Mapping[str, Any] | None, notice: Callable[[str], None] = lambda line: None
) -> Speculative | None:
    """The fields checked, None where nothing is given. Raises ConfigError naming the field."""
    if given is None:
        return None
    fields = {name: value for name, value in given.items() if value is not None}
    for name in [name for name in fields if name not in OWN]:
        _treat(name, fields.pop(name), notice)
    method, model = _method(fields)
    _check_tree(fields.get("speculative_token_tree"))
    counts = {name: _count(fields, name) for name in OWN[2:5]}
    low, high = counts["prompt_lookup_min"], counts["prompt_lookup_max"]
    if method != "ngram" and (low or high):
        raise ConfigError(
            f"speculative_config: prompt_lookup_* are of the method ngram, not {method or model}."
        )
    low, high = low or min(high or LOOKUP_MIN, LOOKUP_MIN), high or max(low or 0, LOOKUP_MAX)
    if low > high:
        raise ConfigError(
            f"speculative_config: prompt_lookup_min={low} is above prompt_lookup_max={high}."
        )
    count = counts["num_speculative_tokens"] or COUNT_DEFAULT
    if count > LIMITS.drafts_max:
        raise ConfigError(
            f"speculative_config: num_speculative_tokens={count}; at most {LIMITS.drafts_max}."
        )
    texts = {name: _text(fields, name) for name in ("quantization", "revision")}
    return Speculative(
        method=method, model=model, count=count, lookup_min=low, lookup_max=high, **texts
    )


def _method(fields: Mapping[str, Any]) -> tuple[Method | None, str | None]:
    """The method and the model that it takes. Raises ConfigError."""
    method, model = _text(fields, "method"), _text(fields, "model")
    if method is None and model in HOST:
        return "ngram", None
    if method is None and model is None:
        raise ConfigError(
            "speculative_config: neither a method nor a model is given.",
            hint=f"Methods: {', '.join(METHODS)}.",
        )
    if method == "ngram":
        if model not in (None, *HOST):
            raise ConfigError(f"speculative_config: ngram needs no model, {model!r} is given.")
        return "ngram", None
    if method is not None and method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1, 0.5)
        more = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"speculative_config: method is {method!r}.{more}",
            hint=f"Supported: {', '.join(METHODS)}.",
        )
    if model is None:
        raise ConfigError(f"speculative_config: the method {method} needs a model.")
    return method, model  # type: ignore[return-value]


def _treat(name: str, value: Any, notice: Callable[[str], None]) -> None:
    """Announce a field without effect, refuse one that can't be honoured or is not known."""
    if name not in WITHOUT_EFFECT:
        near = difflib.get_close_matches(name, [*OWN, *WITHOUT_EFFECT], 1, 0.5)
        more = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"speculative_config: unknown field {name!r}.{more}")
    accepted, reason = WITHOUT_EFFECT[name]
    if accepted is None or value in accepted:
        notice(f"speculative_config.{name}={value} changes nothing: {reason}")
        return
    raise ConfigError(
        f"speculative_config: {name}={value!r} is not supported: {reason}.",
        hint=f"Accepted here: {', '.join(map(str, accepted))}." if accepted else "Leave it out.",
    )


def _check_tree(tree: Any) -> None:
    """A tree without branches is what is done anyway; others are refused."""
    if tree is None:
        return
    try:
        paths = ast.literal_eval(tree) if isinstance(tree, str) else tree
        is_chain = all(not any(path) for path in paths)
    except (ValueError, SyntaxError, TypeError, RecursionError):
        raise ConfigError(
            f"speculative_config: speculative_token_tree {tree!r} is no list of paths.",
            hint="A chain of two is [(0,), (0, 0)].",
        ) from None
    if not is_chain:
        raise ConfigError(
            "speculative_config: speculative_token_tree has branches; guesses are chains, since a "
            "sibling costs a token of the step and seldom stands.",
            hint="Leave it out and give num_speculative_tokens, the length of the longest path.",
        )


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigError(f"speculative_config: {name} must be a positive integer, is {value!r}.")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"speculative_config: {name} must be text, is {value!r}.")
    return value
