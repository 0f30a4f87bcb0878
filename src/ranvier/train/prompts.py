"""Prompts of our own for self-generated training data: forms crossed with topics, by a seed.

Conversations and plain openings both, because served models see both. Knows nothing of models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SeedPrompt", "seed_prompts"]

TEXTS = Path(__file__).parent / "texts"
CHAT_SHARE = 0.6


@dataclass(frozen=True)
class SeedPrompt:
    """One prompt; `is_chat`: the user's words of a conversation, else text to go on with."""

    text: str
    is_chat: bool


def seed_prompts(count: int, seed: int) -> list[SeedPrompt]:
    """`count` prompts without repetition while there are new ones, equal for equal seeds."""
    topics = _lines("topics.txt")
    forms = {True: _lines("questions.txt"), False: _lines("openings.txt")}
    rng, tries = random.Random(seed), 0
    seen: set[str] = set()
    found: list[SeedPrompt] = []
    while len(found) < count:
        is_chat = rng.random() < CHAT_SHARE
        form = rng.choice(forms[is_chat])
        text = form.format(topic=rng.choice(topics), other=rng.choice(topics))
        tries += 1
        if text in seen and tries < 20 * count:
            continue
        seen.add(text)
        found.append(SeedPrompt(text.replace("\\n", "\n"), is_chat))
    return found


def _lines(name: str) -> list[str]:
    text = (TEXTS / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
