"""`ranvier chat`: talk to a running server in the terminal."""

from __future__ import annotations

import argparse

from ranvier.cli.talk import add_talk_arguments, talk

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system-prompt", metavar="TEXT", help="what the system says first")
    add_talk_arguments(parser, "MESSAGE")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Answer messages until the end of input; Ctrl-C stops an answer."""
    del start_s
    return talk(given, system_prompt=given.system_prompt, is_chat=True)
