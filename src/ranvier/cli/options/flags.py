"""Command-line arguments generated from the fields of options dataclasses.

One source: a field's name, type, default and docstring make the flag, the config-file key, the
keyword of `LLM` and the row of docs/config.md. Arguments have no argparse defaults, so that a
namespace holds exactly what was given; a config file and the environment fill what is missing.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any, NoReturn

from ranvier.cli.options.dotted import gather_dotted
from ranvier.cli.options.known import KNOWN
from ranvier.cli.options.settings import (
    Options,
    environment,
    nearest,
    option_names,
    parse_options,
    read_config,
    settle,
)
from ranvier.cli.options.values import is_kind, read_value
from ranvier.core.errors import ConfigError

__all__ = [
    "Parser",
    "add_engine_arguments",
    "add_option_arguments",
    "engine_options",
    "field_docs",
    "given_for",
]

KNOWN_PREFIX = "known:"


class Parser(argparse.ArgumentParser):
    """Takes dashes or underscores, no abbreviations; names the nearest of an unknown option."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "conflict_handler": "resolve", **given})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = gather_dotted([_dashed(a) for a in args or ()])
        found, rest = self.parse_known_args(words, namespace)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f"Unknown option {rest[0]}.{nearest(rest[0], known)}")
        if getattr(found, "config", None):
            self._add_config(found)
        return found

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")

    def _add_config(self, found: argparse.Namespace) -> None:
        """What the file has and the command line has not."""
        destinations = {a.dest.removeprefix(KNOWN_PREFIX): a.dest for a in self._actions}
        for name, (value, place) in read_config(Path(found.config)).items():
            if name not in destinations or name in ("help", "config"):
                raise ConfigError(f"{place}: unknown option {name!r}.{nearest(name, destinations)}")
            if not hasattr(found, destinations[name]):
                setattr(found, destinations[name], value)


def add_engine_arguments(parser: argparse.ArgumentParser, *, has_model: bool = True) -> None:
    """MODEL, --model, --config, a flag for every field of Options and for vLLM's known options."""
    if has_model:
        parser.add_argument("model_positional", nargs="?", metavar="MODEL", help="the model")
    parser.add_argument("--config", help="a YAML file of options; the command line wins")
    add_option_arguments(parser, Options, "engine")
    for name, known in KNOWN.items():
        reading = _reading(bool if known.is_switch else str)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(
            flag, dest=KNOWN_PREFIX + name, default=argparse.SUPPRESS, help=argparse.SUPPRESS,
            **reading,
        )  # fmt: skip


def engine_options(given: argparse.Namespace) -> Options:
    """Options of a command line that add_engine_arguments described. Raises ConfigError."""
    found = vars(given)
    known = {
        k.removeprefix(KNOWN_PREFIX): v for k, v in found.items() if k.startswith(KNOWN_PREFIX)
    }
    settle({name: _plain(value) for name, value in known.items()})
    fields = {name: found[name] for name in option_names(Options) if name in found}
    positional = found.get("model_positional")
    named = positional or fields.get("model") or environment(["model"]).get("model")
    if not named:
        raise ConfigError("No model is named.", hint="Name one: ranvier serve MODEL.")
    if positional and fields.get("model") not in (None, positional):
        raise ConfigError(f"Two models: {positional} and {fields['model']}.")
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
    """The fields of `kind` from command line, config file and environment, typed."""
    names, hints = option_names(kind), typing.get_type_hints(kind)
    found = {**environment(names), **{k: v for k, v in vars(given).items() if k in names}}
    return {name: read_value(name, hints[name], value) for name, value in found.items()}


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for own in filter(dataclasses.is_dataclass, kind.__mro__):
        body = ast.parse(inspect.getsource(own)).body[0]
        assert isinstance(body, ast.ClassDef)
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
    """argparse's settings for a type; texts are parsed by values.read_value."""
    if is_kind(hint, bool):
        return {"action": argparse.BooleanOptionalAction}
    if is_kind(hint, tuple):
        return {"nargs": "+", "action": "extend"}
    return {"metavar": "JSON"} if is_kind(hint, dict) else {}


def _plain(value: Any) -> Any:
    """The number that a text is, else the text: values of options that have no type here."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    head, dot, path = name.partition(".")
    return head.replace("_", "-") + dot + path + equals + value
