"""The command line: a table of commands, of which only the one named is imported."""

from __future__ import annotations

import importlib
import sys
import time
from typing import NamedTuple

from ranvier.core.errors import ConfigError, RanvierError
from ranvier.version import __version__

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """A command; its module has `add_arguments(parser)` and `run(given, start_s)`."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("serve", "ranvier.cli.commands.serve", "serve a model over HTTP"),
    Command("chat", "ranvier.cli.commands.chat", "talk to a running server"),
    Command("complete", "ranvier.cli.commands.complete", "let a running server complete text"),
    Command("compile", "ranvier.cli.commands.compile", "build the artifact and stop"),
    Command("plan", "ranvier.cli.commands.plan", "what fits where, before anything is compiled"),
    Command("accuracy", "ranvier.cli.commands.accuracy", "tokens and logits against a reference"),
    Command("doctor", "ranvier.cli.commands.doctor", "is this machine ready, and what to mend"),
    Command("collect-env", "ranvier.cli.commands.collect_env", "versions for a bug report"),
    Command("quantize", "ranvier.cli.commands.quantize", "write a quantised model as a folder"),
    Command(
        "merge-lora", "ranvier.cli.commands.merge_lora", "write a model and its adapter as one"
    ),
    Command(
        "train-eagle", "ranvier.cli.commands.train_eagle", "train a draft head on this machine"
    ),
    Command(
        "convert-eagle",
        "ranvier.cli.commands.convert_eagle",
        "write a draft head that needs nothing else",
    ),
    Command(
        "artifacts", "ranvier.cli.commands.artifacts", "list, verify, compare, remove artifacts"
    ),
    Command("bench", "ranvier.cli.commands.bench", "measure latency, throughput, serving, startup"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors are printed with their hint, never a traceback."""
    start_s = time.perf_counter()
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--version"]:
        print(__version__)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    try:
        return _run(words, start_s)
    except RanvierError as error:
        print(f"ranvier: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(words: list[str], start_s: float) -> int:
    from ranvier.cli.options.flags import Parser
    from ranvier.cli.options.settings import nearest

    commands = {command.name: command for command in COMMANDS}
    command = commands.get(words[0])
    if command is None:
        raise ConfigError(
            f"Unknown command {words[0]!r}.{nearest(words[0], commands)}",
            hint=f"Commands: {', '.join(commands)}.",
        )
    module = importlib.import_module(command.module)
    parser = Parser(prog=f"ranvier {command.name}", description=module.__doc__)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(words[1:]), start_s) or 0)


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS)
    rows = "\n".join(f"  {c.name:<{width}}  {c.help}" for c in COMMANDS)
    return (
        f"usage: ranvier COMMAND ...\n\nServe large language models from programs compiled "
        f"ahead of time.\n\ncommands:\n{rows}\n\nranvier COMMAND --help tells a command's options; "
        f"ranvier --version the version."
    )


if __name__ == "__main__":
    sys.exit(main())
