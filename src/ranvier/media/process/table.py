"""The families that see pictures, each with its processor: one literal table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ranvier.core.errors import CheckpointError
from ranvier.media.process.clip import Llava
from ranvier.media.process.gemma3 import Gemma3
from ranvier.media.process.idefics3 import Idefics3
from ranvier.media.process.llava_next import LlavaNext
from ranvier.media.process.mllama import Mllama
from ranvier.media.process.pixtral import Pixtral
from ranvier.media.process.prepared import ImageProcessor
from ranvier.media.process.qwen_vl import QwenVl

__all__ = ["FAMILIES", "Family", "find_family"]


class Family(NamedTuple):
    """A family's processor, and its tokens by the names that its tokenizer gives them.

    `placeholder` stands for a picture in a rendered template; `feature` is the token that the
    prompt repeats, once a feature. `forbidden` are both, and what else belongs to pictures alone:
    text of users may hold none of them.
    """

    processor: type[ImageProcessor]
    placeholder: str
    feature: str
    has_rope_axes: bool = False

    @property
    def forbidden(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.placeholder, self.feature)))


QWEN = Family(QwenVl, "<|image_pad|>", "<|image_pad|>", True)
IDEFICS = Family(Idefics3, "<image>", "<image>")

FAMILIES: dict[str, Family] = {
    "llava": Family(Llava, "<image>", "<image>"),
    "llava_next": Family(LlavaNext, "<image>", "<image>"),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "gemma3": Family(Gemma3, "<start_of_image>", "<image_soft_token>"),
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "pixtral": Family(Pixtral, "[IMG]", "[IMG]"),
    "mllama": Family(Mllama, "<|image|>", "<|image|>"),
}
"""By config.json's model_type; a llava whose encoder is Pixtral's is a pixtral."""


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a model's config.json. Raises CheckpointError."""
    name = config.get("model_type")
    vision = config.get("vision_config") or {}
    if name == "llava" and vision.get("model_type") == "pixtral":
        name = "pixtral"
    family = FAMILIES.get(str(name))
    if family is None:
        raise CheckpointError(f"config.json: no pictures for model_type {name!r}.")
    return family
