"""Field: one row of the configuration table, and the check of a value's type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Derived", "Field", "Status", "fits", "honoured", "plain_dtype", "refused", "satisfied",
]  # fmt: skip

Status = Literal["honoured", "satisfied", "refused"]


@dataclass(frozen=True, slots=True)
class Derived:
    """A default that another stack computes; `text` says of what."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """What a field of another stack's configuration means here.

    `honoured`: `option` takes its value. `satisfied`: what it asks for holds whatever the value;
    `note` says how. `refused`: only the default and `accepted` may be given; `note` says why.
    """

    name: str
    kind: str
    """int, count (positive), bool, float, number (text too), str, dtype, sizes (counts), strings,
    dict, any."""
    default: Any
    status: Status
    note: str
    option: str = ""
    accepted: tuple[Any, ...] = ()

    def asks_nothing(self, value: Any) -> bool:
        """Whether a value of a refused field changes nothing, so that it may be given."""
        return value is None or value == self.default or value in self.accepted


def honoured(name: str, kind: str, default: Any, option: str, note: str) -> Field:
    """A field that sets `option`."""
    return Field(name, kind, default, "honoured", note, option)


def satisfied(name: str, kind: str, default: Any, note: str) -> Field:
    """A field whose wish holds whatever its value."""
    return Field(name, kind, default, "satisfied", note)


def refused(name: str, kind: str, default: Any, note: str, accepted: tuple[Any, ...] = ()) -> Field:
    """A field that may not be set to anything that asks for something."""
    return Field(name, kind, default, "refused", note, "", accepted)


def fits(field: Field, value: Any) -> bool:
    """Whether a value has the field's type; None is unset and always fits."""
    if value is None or field.kind == "any":
        return True
    if field.kind == "int":
        return type(value) is int
    if field.kind == "count":
        return type(value) is int and value > 0
    if field.kind == "float":
        return type(value) in (int, float)
    if field.kind == "number":
        return type(value) in (int, float) or (isinstance(value, str) and _is_number(value))
    if field.kind == "bool":
        return type(value) is bool
    if field.kind == "dict":
        return isinstance(value, Mapping)
    if field.kind == "dtype":
        return isinstance(value, str) or str(value).startswith("torch.")
    if field.kind == "str":
        return isinstance(value, str)
    items = list(value) if isinstance(value, (list, tuple)) else [None]
    if field.kind == "strings":
        return all(isinstance(item, str) for item in items)
    assert field.kind == "sizes", field.kind
    return bool(items) and all(type(item) is int and item > 0 for item in items)


def plain_dtype(value: Any) -> str:
    """A dtype's name without its module: torch.bfloat16, as object or text, is bfloat16."""
    return str(value).removeprefix("torch.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
