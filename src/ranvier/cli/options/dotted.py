"""JSON options given by parts: `--arg.key v --arg.inner.key2 v`, lists `--arg.k+ v`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = ["gather_dotted"]


def gather_dotted(words: Sequence[str]) -> list[str]:
    """`words` with the parts of each option joined to one `--arg JSON` at the end."""
    plain: list[str] = []
    trees: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        option, dot, path = name.partition(".")
        if word == "--":
            plain += [word, *rest]
        elif not word.startswith("--") or not dot:
            plain.append(word)
        else:
            value = text if equals else next(rest, None)
            if value is None:
                raise ConfigError(f"{name} needs a value.")
            _put(trees.setdefault(option, {}), name, path.split("."), value)
    for option, tree in trees.items():
        if any(word.partition("=")[0] == option for word in plain):
            raise ConfigError(f"{option} is given as JSON and by parts; use one form.")
        plain += [option, json.dumps(tree)]
    return plain


def _put(tree: dict[str, Any], name: str, path: list[str], text: str) -> None:
    *outer, last = path
    for key in outer:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {key} has a value of its own already.")
    if last.endswith("+"):
        items = tree.setdefault(last[:-1], [])
        if not isinstance(items, list):
            raise ConfigError(f"{name}: {last[:-1]} is no list.")
        items += [_value(part) for part in text.split(",")]
    elif last in tree:
        raise ConfigError(f"{name} is given twice.")
    else:
        tree[last] = _value(text)


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
