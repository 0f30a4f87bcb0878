"""The ways in which Neuron's configurations name adapters: one table of them, or problems.

A file of `lora_ckpt_json` holds `lora-ckpt-paths` and `lora-ckpt-paths-cpu`, name to folder below
`lora-ckpt-dir`. Whether NxDI keeps an adapter on the device or on the host at first says nothing
here: every one is in host memory and takes a slot when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ranvier.targets.neuron.config.read import Given, Problem

__all__ = ["OPTION", "join_adapters"]

OPTION = "lora_modules"
JSON_BYTES_MAX = 2**20
JSON_KEYS = ("lora-ckpt-dir", "lora-ckpt-paths", "lora-ckpt-paths-cpu")
MODULE_KEYS = ("name", "path")
PATHS = 'must be {"name": "folder"}, or a list of "name:folder".'


class Named(NamedTuple):
    """An adapter, and the key that names it."""

    key: str
    name: str
    path: str


class Malformed(Exception):
    """A value that names no adapters, and why."""


def join_adapters(given: list[Given]) -> tuple[dict[str, str], list[Problem]]:
    """Name to folder of every adapter; a name with two folders is a problem."""
    found: dict[str, Named] = {}
    problems: list[Problem] = []
    for one in given:
        if one.field.option != OPTION:
            continue
        try:
            named = list(_named(one))
        except Malformed as wrong:
            problems.append(Problem(one.key, one.value, str(wrong), ""))
            continue
        for adapter in named:
            other = found.setdefault(adapter.name, adapter)
            if other.path != adapter.path:
                limit = f"{adapter.name} is {other.path} in {other.key}."
                fix = "Give one of them, or make them equal."
                problems.append(Problem(adapter.key, adapter.path, limit, fix))
    return {name: adapter.path for name, adapter in found.items()}, problems


def _named(given: Given) -> Iterator[Named]:
    if given.field.name == "lora_modules":
        pairs = _modules(given.value)
    elif given.field.name == "lora_ckpt_json":
        pairs = _file(Path(given.value).expanduser())
    else:
        pairs = _paths(given.value)
    for name, path in pairs:
        yield Named(given.key, name, path)


def _modules(value: Any) -> Iterator[tuple[str, str]]:
    """[{"name": ..., "path": ...}, ...]"""
    for item in value if isinstance(value, (list, tuple)) else [None]:
        fields = item if isinstance(item, Mapping) else {}
        if not all(_is_text(fields.get(name)) for name in ("name", "path")):
            raise Malformed('must be a list of {"name": ..., "path": ...}.')
        unknown = [str(name) for name in fields if name not in MODULE_KEYS]
        if unknown:
            raise Malformed(f"{unknown[0]!r} is no key of an adapter: {', '.join(MODULE_KEYS)}.")
        yield fields["name"], fields["path"]


def _paths(value: Any) -> Iterator[tuple[str, str]]:
    """{"name": "folder"} or ["name:folder"]; a folder may hold colons, a name may not."""
    pairs: list[tuple[Any, ...]]
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        items = value if isinstance(value, (list, tuple)) else [None]
        pairs = [tuple(item.split(":", 1)) if isinstance(item, str) else () for item in items]
    for pair in pairs:
        if len(pair) != 2 or not all(map(_is_text, pair)):
            raise Malformed(PATHS)
        yield pair[0], pair[1]


def _file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            text = file.read(JSON_BYTES_MAX + 1)
    except OSError as error:
        raise Malformed(f"can't be read: {error.strerror}.") from None
    if len(text) > JSON_BYTES_MAX:
        raise Malformed(f"is larger than {JSON_BYTES_MAX} bytes.")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("holds no JSON.") from None
    if not isinstance(fields, dict) or not set(fields) <= set(JSON_KEYS):
        raise Malformed(f"must hold an object with the keys {', '.join(JSON_KEYS)}.")
    folder = fields.get("lora-ckpt-dir", "")
    if not isinstance(folder, str):
        raise Malformed("lora-ckpt-dir must be text.")
    for key in JSON_KEYS[1:]:
        for name, below in _paths(fields.get(key, {})):
            yield name, str(Path(folder, below))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
