"""Self-generated examples: the target's own answers to prompts of ours, appended to a file.

The file is the checkpoint: what it holds is kept, and generation goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ranvier.core.sampling import SamplingParams
from ranvier.train.examples import Example, append_examples, count_examples
from ranvier.train.prompts import SeedPrompt, seed_prompts

__all__ = ["Generator", "generate_examples"]

PART = 128
"""Prompts between two writes; several times the engine's rows, so that these stay filled."""
TEMPERATURES = (0.0, 0.0, 0.0, 0.8)
"""Taken in turn: what greedy users see, and what others do."""


class Generator(Protocol):
    """The offline engine, as far as it is used here (offline/llm.py)."""

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Any]: ...


def generate_examples(
    llm: Generator,
    path: Path,
    count: int,
    *,
    tokens_max: int,
    seed: int,
    chat_ids: Callable[[str], list[int]] | None,
    progress: Callable[[int], object],
) -> None:
    """Extend the file to `count` examples.

    `chat_ids` gives a conversation's ids up to the answer; None: the model has no template, and
    every prompt is plain text.
    """
    prompts = seed_prompts(count, seed)
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


def _example(output: Any) -> Example:
    prompt_ids = list(output.prompt_token_ids)
    return Example((*prompt_ids, *output.outputs[0].token_ids), len(prompt_ids))
