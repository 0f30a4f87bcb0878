"""StructuredOutputsParams: which texts a request may have, and what keeps a sequence to them.

vLLM's names (see docs/structured-outputs.md). Knows nothing of the library that reads grammars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import RequestError

__all__ = ["KINDS", "Matcher", "MatcherSource", "StructuredOutputsParams"]

KINDS = ("json", "regex", "choice", "grammar", "json_object")


class StructuredOutputsParams(
    msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Exactly one of json (a schema), regex, choice, grammar (Lark), json_object.

    Raises RequestError.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: Any = None

    def __post_init__(self) -> None:
        for name in ("structural_tag", "disable_additional_properties"):
            if getattr(self, name) not in (None, False):
                raise _refusal(f"{name} is not supported.")
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            told = ", ".join(given) or "none"
            raise _refusal(f"exactly one of {', '.join(KINDS)} must be set, got {told}.")
        kinds = {"json": (str, dict), "choice": (list,), "json_object": (bool,)}
        if not isinstance(getattr(self, given[0]), kinds.get(given[0], (str,))):
            raise _refusal(f"{given[0]} is of a wrong type.")
        choice = self.choice
        if choice is not None and not (choice and all(isinstance(c, str) and c for c in choice)):
            raise _refusal("choice must be a list of texts, none empty.")
        if given[0] not in ("json", "json_object"):
            for name in ("disable_any_whitespace", "whitespace_pattern"):
                if getattr(self, name):
                    raise _refusal(f"{name} needs json or json_object.")


def _refusal(reason: str) -> RequestError:
    return RequestError(f"structured_outputs: {reason}", param="structured_outputs")


class Matcher(Protocol):
    """Where one sequence is within its grammar."""

    def fresh(self) -> Matcher:
        """Another of the same grammar, at its start."""
        ...

    def mask(self) -> NDArray[np.uint32]:
        """Which tokens may come next, as LogitEdits.allowed."""
        ...

    def advance(self, token: int) -> bool:
        """Take a token; False, and nothing more is known, when the grammar refuses it."""
        ...

    def rollback(self, count: int) -> None:
        """Take the last tokens back."""
        ...

    def permitted(self, tokens: list[int]) -> int:
        """How many of these may follow, one behind the other, short of an end."""
        ...


MatcherSource = Callable[[StructuredOutputsParams], Matcher]
"""Makes a matcher at the start of its grammar. Raises RequestError for a grammar that is wrong."""
