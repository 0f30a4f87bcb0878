"""Self-generated examples: the target's own answers, appended to a file.

Where the model has a template, three of four prompts are turns of a user that it writes itself,
behind the template's opening of one; the others are ours. The files are the checkpoint: what they
hold is kept, and generation goes on where it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ranvier.core.sampling import SamplingParams
from ranvier.train.examples import Example, append_examples, count_examples
from ranvier.train.prompts import SeedPrompt, seed_prompts

__all__ = ["Chat", "Generator", "fresh", "generate_examples"]

PART = 512
"""Prompts between two writes; several times the engine's rows, so that these stay filled."""
TEMPERATURES = (0.0, 0.0, 0.0, 0.8)
"""Taken in turn: what greedy users see, and what others do."""
OURS = 4
"""One prompt of so many is ours."""
TURN_TOKENS_MAX, TURN_WORDS_MIN = 48, 4
RUN = 16
"""An answer ends where so many tokens occur again: a loop teaches nothing but itself."""


class Generator(Protocol):
    """The offline engine, as far as it is used here (offline/llm.py)."""

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Any]: ...


@dataclass(frozen=True)
class Chat:
    """The model's template: ids of a conversation up to its answer, and up to a user's words."""

    ids: Callable[[str], list[int]]
    opening: Sequence[int]


def generate_examples(
    llm: Generator,
    path: Path,
    count: int,
    *,
    tokens_max: int,
    seed: int,
    chat: Chat | None,
    progress: Callable[[int], object],
) -> None:
    """Extend the file to `count` examples. Without a template all prompts are texts of ours."""
    prompts = seed_prompts(count, seed)
    if chat is not None:
        places = [i for i in range(count) if i % OURS]
        own = _own_turns(llm, path.with_name("turns.json"), len(places), seed, chat)
        for i, text in zip(places, own, strict=False):
            prompts[i] = SeedPrompt(text, True)
    chat_ids = None if chat is None else chat.ids
    done = count_examples(path)
    progress(min(done, count))
    for start in range(done, count, PART):
        part = prompts[start : start + PART]
        contents = [_content(prompt, chat_ids) for prompt in part]
        params = [
            SamplingParams(
                temperature=TEMPERATURES[(start + i) % len(TEMPERATURES)],
                top_p=0.95,
                max_tokens=tokens_max,
                seed=seed + start + i,
                # A plain text has no end: what a server gives under ignore_eos is learnt too.
                ignore_eos=not prompt.is_chat,
            )
            for i, prompt in enumerate(part)
        ]
        outputs = llm.generate(contents, params, use_tqdm=False)
        append_examples(path, (_example(output) for output in outputs))
        progress(len(part))


def _content(prompt: SeedPrompt, chat_ids: Callable[[str], list[int]] | None) -> Any:
    if prompt.is_chat and chat_ids is not None:
        return {"prompt_token_ids": chat_ids(prompt.text)}
    return prompt.text


def _own_turns(llm: Generator, path: Path, count: int, seed: int, chat: Chat) -> list[str]:
    """`count` turns of a user by the model itself, all different, kept in the file."""
    texts: list[str] = json.loads(path.read_text()) if path.is_file() else []
    if len(texts) >= count:
        return texts[:count]
    seen: dict[str, None] = {}
    tries = 0
    while len(seen) < count and tries < 4 * count + PART:
        params = [
            SamplingParams(
                temperature=1.0, top_p=0.95, max_tokens=TURN_TOKENS_MAX, seed=seed + tries + i
            )
            for i in range(PART)
        ]
        outputs = llm.generate(
            [{"prompt_token_ids": list(chat.opening)}] * PART, params, use_tqdm=False
        )
        tries += PART
        for completion in (output.outputs[0] for output in outputs):
            text = completion.text.strip()
            if completion.finish_reason == "stop" and len(text.split()) >= TURN_WORDS_MIN:
                seen.setdefault(text)
    texts = list(seen)[:count]
    path.write_text(json.dumps(texts))
    return texts


def _example(output: Any) -> Example:
    prompt_ids, answer = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
    return Example((*prompt_ids, *answer[: fresh(answer)]), len(prompt_ids))


def fresh(ids: Sequence[int]) -> int:
    """How many tokens come before a run of RUN of them has occurred again."""
    seen: set[tuple[int, ...]] = set()
    for end in range(RUN, len(ids) + 1):
        run = tuple(ids[end - RUN : end])
        if run in seen:
            return end
        seen.add(run)
    return len(ids)
