"""DraftSpec: the model that drafts for another, as data, and whether the two belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ranvier.core.errors import ConfigError
from ranvier.models.eagle import EagleSpec
from ranvier.models.spec import DecoderSpec

__all__ = ["DraftSpec", "check_pair"]


@dataclass(frozen=True)
class DraftSpec:
    """How a draft is made on the device, and of what: `spec` has its numbers and arrays.

    `eagle`: what else there is to know of a head; its `decoder` is `spec`.
    """

    method: Literal["draft_model", "eagle", "eagle3"]
    spec: DecoderSpec
    eagle: EagleSpec | None = None


def check_pair(target: DecoderSpec, draft: DecoderSpec) -> None:
    """Raise ConfigError, naming both sides, where a whole model can't draft for another."""
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"The draft model has {draft.vocab_size} tokens in its vocabulary, the target "
            f"{target.vocab_size}.",
            hint="A draft model must share the target's tokenizer; take one of the same family.",
        )
