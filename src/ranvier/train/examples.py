"""Example: token ids and where the answer begins; files of them, and users' data read into them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = ["Example", "append_examples", "count_examples", "read_data", "read_examples"]

LINE_BYTES_MAX = 2**20


@dataclass(frozen=True)
class Example:
    """A sequence; tokens from `start` on are the target's answer, which the head learns."""

    ids: Sequence[int]
    start: int


def append_examples(path: Path, examples: Iterable[Example]) -> None:
    """Add lines to a file of ours; a line is written whole or, if cut off, left out on reading."""
    text = "".join(
        json.dumps({"start": e.start, "ids": list(e.ids)}, separators=(",", ":")) + "\n"
        for e in examples
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def count_examples(path: Path) -> int:
    """How many whole lines a file of ours has; a last line that was cut off is removed."""
    if not path.is_file():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return data[:whole].count(b"\n")


def read_examples(path: Path, tokens_max: int) -> Iterator[Example]:
    """The examples of a file of ours, each cut to tokens_max; four bytes a token."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield Example(array("i", row["ids"][:tokens_max]), min(row["start"], tokens_max))


def read_data(
    path: Path,
    encode: Callable[[str], list[int]],
    chat_ids: Callable[[list[dict[str, Any]], bool], list[int]],
) -> Iterator[Example]:
    """A user's JSON lines: {"messages": [...]}, {"prompt", "completion"} or {"text"} a line.

    `chat_ids(messages, is_open)` renders a conversation, open for an answer or not. Raises
    ConfigError that names file and line.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such data file.")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            yield _user_example(_row(line, where), where, encode, chat_ids)


def _row(line: str, where: str) -> dict[str, Any]:
    if len(line) > LINE_BYTES_MAX:
        raise ConfigError(f"{where}: the line is longer than {LINE_BYTES_MAX} characters.")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: not valid JSON.") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: must be a JSON object, is {type(row).__name__}.")
    return row


def _user_example(
    row: dict[str, Any],
    where: str,
    encode: Callable[[str], list[int]],
    chat_ids: Callable[[list[dict[str, Any]], bool], list[int]],
) -> Example:
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) >= 2:
        before = chat_ids(messages[:-1], True)
        return Example(tuple(chat_ids(messages, False)), len(before))
    prompt, completion, text = row.get("prompt"), row.get("completion"), row.get("text")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(tuple(encode(prompt + completion)), len(encode(prompt)))
    if isinstance(text, str):
        return Example(tuple(encode(text)), 1)
    raise ConfigError(
        f"{where}: holds {sorted(row)}.",
        hint='A line is {"messages": [...]}, {"prompt": "...", "completion": "..."} or '
        '{"text": "..."}.',
    )
