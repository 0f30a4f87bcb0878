"""`ranvier complete`: let a running server complete prompts in the terminal."""

from __future__ import annotations

import argparse

from ranvier.cli.talk import add_talk_arguments, talk

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_talk_arguments(parser, "PROMPT")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Complete prompts until the end of input; Ctrl-C stops a completion."""
    del start_s
    return talk(given, system_prompt=None, is_chat=False)
