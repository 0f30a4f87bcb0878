"""The command line: `ranvier serve | compile | artifacts`. Imports nothing heavy early."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ranvier.cli.settings import Options, nearest, parse_options
from ranvier.core.errors import ConfigError, RanvierError
from ranvier.version import __version__

__all__ = ["main"]

FRONT = ("host", "port", "uds", "api_key", "served_model_name", "strict_params")


class _Parser(argparse.ArgumentParser):
    """Accepts dashes and underscores, and names the nearest option on an unknown one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = [_dashed(a) for a in (sys.argv[1:] if args is None else args)]
        found, rest = self.parse_known_args(given, namespace)
        if rest:
            known = _option_names(self)
            raise ConfigError(f"Unknown option {rest[0]}.{nearest(rest[0], known)}")
        return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors are printed with their hint, never a traceback."""
    start_s = time.perf_counter()
    try:
        given = _parser().parse_args(arguments)
        return int(given.run(given, start_s) or 0)
    except RanvierError as error:
        print(f"ranvier: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> _Parser:
    parser = _Parser(prog="ranvier", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    serve = commands.add_parser("serve", help="serve a model over HTTP")
    _add_engine(serve)
    _add_front(serve)
    serve.set_defaults(run=_serve)
    build = commands.add_parser("compile", help="build the artifact and stop")
    _add_engine(build)
    build.set_defaults(run=_compile)
    artifacts = commands.add_parser("artifacts", help="list, verify or inspect artifacts")
    artifacts.add_argument("action", choices=["ls", "verify", "inspect"])
    artifacts.add_argument("folder", type=Path)
    artifacts.set_defaults(run=_artifacts)
    return parser


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_positional", nargs="?", metavar="MODEL")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=_size)
    parser.add_argument("--max-num-seqs", type=_size, default=32)
    parser.add_argument("--max-num-batched-tokens", type=_size)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--num-gpu-blocks-override", type=int)
    parser.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifacts")
    parser.add_argument("--require-artifacts", action="store_true")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)


def _add_front(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    parser.add_argument("--api-key", action="append")
    parser.add_argument("--served-model-name")
    parser.add_argument("--strict-params", action="store_true")


def _options(given: argparse.Namespace) -> Options:
    fields = {k: v for k, v in vars(given).items() if k not in (*FRONT, "run", "command")}
    named = fields.pop("model_positional") or fields["model"]
    if not named:
        raise ConfigError("Name a model: ranvier serve MODEL.")
    return parse_options({**fields, "model": named})


def _serve(given: argparse.Namespace, start_s: float) -> None:
    from ranvier.cli.serve import serve

    serve(_options(given), {name: getattr(given, name) for name in FRONT}, start_s)


def _compile(given: argparse.Namespace, start_s: float) -> None:
    from ranvier.cli.wire import ensure_artifact

    print(ensure_artifact(_options(given)))


def _artifacts(given: argparse.Namespace, start_s: float) -> int:
    from ranvier.artifact.read import read_manifest, verify

    if given.action == "ls":
        for path in sorted(given.folder.glob("*/manifest.json")):
            print(path.parent)
        return 0
    if given.action == "inspect":
        sys.stdout.write((given.folder / "manifest.json").read_text() + "\n")
        return 0
    faults = verify(given.folder)
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{given.folder}: {len(read_manifest(given.folder).files)} files are whole")
    return 4 if faults else 0


def _size(text: str) -> int:
    """1k is 1000, 1K is 1024, 25.6k is 25600; m, g, M, G alike."""
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    if text and text[-1] in units:
        return int(float(text[:-1]) * units[text[-1]])
    return int(text)


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Option names of a parser and its commands."""
    names = [name for action in parser._actions for name in action.option_strings]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names += [n for sub in action.choices.values() for n in _option_names(sub)]
    return names


if __name__ == "__main__":
    sys.exit(main())
