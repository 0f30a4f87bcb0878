"""Read a given configuration: merge, names, types, what is refused. Gathers every problem."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ranvier.targets.neuron.config.field import Derived, Field, fits
from ranvier.targets.neuron.config.table import CHILDREN, SECTIONS

__all__ = ["Given", "Problem", "doubled", "is_deep", "merge", "read_section"]

KINDS = {
    "int": "an integer", "count": "a positive integer", "float": "a number",
    "number": "a number", "bool": "true or false",
    "str": "text", "dtype": "the name of a type", "sizes": "a list of positive integers",
    "strings": "a list of text", "dict": "a dictionary",
}  # fmt: skip


LEVELS_MAX = 8
SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, the value seen, the limit, what to do."""

    key: str
    value: Any
    limit: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key} = {_shown(self.value)}: {self.limit} {self.fix}".rstrip()


@dataclass(frozen=True, slots=True)
class Given:
    """A value as given: the full path of its key, its field, the value."""

    key: str
    section: str
    field: Field
    value: Any


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: dictionaries are merged key by key at every depth, all else replaced.

    Keys are spelt with underscores in the result.
    """
    merged: dict[str, Any] = {}
    for part in (base, over):
        for key, value in part.items():
            name, old = _plain(key), merged.get(_plain(key))
            if isinstance(value, Mapping):
                value = merge(old if isinstance(old, Mapping) else {}, value)
            merged[name] = value
    return merged


def is_deep(value: Any, levels: int = LEVELS_MAX) -> bool:
    """Whether dictionaries are nested beyond `levels`; no section of the table is."""
    if not isinstance(value, Mapping):
        return False
    return levels == 0 or any(is_deep(item, levels - 1) for item in value.values())


def doubled(given: Mapping[str, Any], path: str) -> list[Problem]:
    """Keys that one dictionary holds twice, with - and with _."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for key, value in given.items():
        name = _plain(key)
        where = f"{path}.{name}"
        if name in seen:
            problems.append(Problem(where, value, "is given twice, with - and with _.", ""))
        seen.add(name)
        if isinstance(value, Mapping):
            problems += doubled(value, where)
    return problems


def read_section(
    section: str, given: Mapping[str, Any], path: str
) -> tuple[list[Given], list[Problem]]:
    """Every value of a merged section and of those inside it, with what is wrong; None is unset."""
    values: list[Given] = []
    problems: list[Problem] = []
    for name, value in given.items():
        where = f"{path}.{name}"
        field = SECTIONS[section].get(name)
        if field is None:
            problems.append(_unknown(section, where, name, value))
        elif not fits(field, value):
            problems.append(Problem(where, value, f"must be {KINDS[field.kind]}.", ""))
        elif value is not None:
            more = _take(section, where, field, value)
            values += more[0]
            problems += more[1]
    return values, problems


def _take(section: str, where: str, field: Field, value: Any) -> tuple[list[Given], list[Problem]]:
    values = [Given(where, section, field, value)]
    problems: list[Problem] = []
    child = CHILDREN.get((section, field.name))
    if child is not None:
        inner, problems = read_section(child, value, where)
        # A refused section is refused once, not field by field.
        problems = [p for p in problems if field.status != "refused" or not _is_refusal(p)]
        values += inner
    if field.status == "refused" and value != {} and not field.asks_nothing(value):
        problems.append(Problem(where, value, f"{REFUSED}{field.note}.", _fix(field)))
    return values, problems


REFUSED = "is refused: "


def _is_refusal(problem: Problem) -> bool:
    return problem.limit.startswith(REFUSED)


def _fix(field: Field) -> str:
    default = field.default
    usual = "" if isinstance(default, Derived) else f", or give its default {default!r}"
    return f"Leave it out{usual}."


def _unknown(section: str, where: str, name: str, value: Any) -> Problem:
    near = difflib.get_close_matches(name, list(SECTIONS[section]), 1, 0.5)
    elsewhere = [other for other, fields in SECTIONS.items() if name in fields]
    if elsewhere:
        fix = f"It is a key of {elsewhere[0]}."
    else:
        fix = f"Did you mean {near[0]}?" if near else ""
    return Problem(where, value, f"is no key of {section}.", fix)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def _plain(key: object) -> str:
    return str(key).replace("-", "_")
