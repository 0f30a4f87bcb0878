"""`ranvier compile MODEL`: build the artifact and stop."""

from __future__ import annotations

import argparse

from ranvier.cli.flags import add_engine_arguments, engine_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Print the artifact's folder."""
    del start_s
    options = engine_options(given)
    from ranvier.cli.wire import ensure_artifact

    print(ensure_artifact(options))
    return None
