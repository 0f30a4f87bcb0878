"""Command-line arguments generated from the fields of options dataclasses.

One source: a field's name, type, default and docstring make the flag, the config-file key, the
keyword of `LLM` and the row of docs/config.md. Arguments have no argparse defaults, so that a
namespace holds exactly what was given.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ranvier.cli.settings import Options, nearest, parse_options, parse_size
from ranvier.core.errors import ConfigError

__all__ = [
    "Parser",
    "add_engine_arguments",
    "add_option_arguments",
    "engine_options",
    "field_docs",
    "given_for",
]


class Parser(argparse.ArgumentParser):
    """Takes dashes or underscores, no abbreviations; names the nearest of an unknown option."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **given})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args([_dashed(a) for a in args or ()], namespace)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f"Unknown option {rest[0]}.{nearest(rest[0], known)}")
        return found

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --model and a flag for every field of Options."""
    parser.add_argument("model_positional", nargs="?", metavar="MODEL", help="the model")
    add_option_arguments(parser, Options, "engine")


def engine_options(given: argparse.Namespace) -> Options:
    """Options of a command line that add_engine_arguments described. Raises ConfigError."""
    fields = given_for(given, Options)
    named = given.model_positional or fields.get("model")
    if not named:
        raise ConfigError("No model is named.", hint="Name one: ranvier serve MODEL.")
    return parse_options({**fields, "model": named})


def add_option_arguments(parser: argparse.ArgumentParser, kind: type, title: str) -> None:
    """One flag for each field of a dataclass of options."""
    group = parser.add_argument_group(f"{title} options")
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    for field in dataclasses.fields(kind):
        flag = "--" + field.name.replace("_", "-")
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field, docs)}
        group.add_argument(flag, **settings, **_reading(hints[field.name]))


def given_for(given: argparse.Namespace, kind: type) -> dict[str, Any]:
    """What the command line gave for the fields of `kind`."""
    names = (field.name for field in dataclasses.fields(kind))
    found = {name: getattr(given, name) for name in names if hasattr(given, name)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _help(field: dataclasses.Field[Any], docs: dict[str, str]) -> str:
    text = docs[field.name].replace("%", "%%")
    is_told = field.default in (None, (), dataclasses.MISSING) or isinstance(field.default, bool)
    return text if is_told else f"{text} [{field.default}]"


def _reading(hint: Any) -> dict[str, Any]:
    """argparse's settings for a type."""
    kinds = _members(hint)
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    if int in kinds:
        return {"type": parse_size}
    if float in kinds:
        return {"type": float}
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return {"nargs": "+", "action": "extend"}
    return {"type": str}


def _members(hint: Any) -> Sequence[Any]:
    """The types of a union but None; else the type itself."""
    if isinstance(hint, types.UnionType):
        members: Iterable[Any] = typing.get_args(hint)
        return [member for member in members if member is not types.NoneType]
    return [hint]


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
