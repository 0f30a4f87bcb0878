"""`ranvier serve MODEL`: serve a model over HTTP."""

from __future__ import annotations

import argparse

from ranvier.cli.options.cluster import ClusterOptions
from ranvier.cli.options.flags import (
    add_engine_arguments,
    add_option_arguments,
    engine_options,
    given_for,
)
from ranvier.cli.options.front import FrontOptions

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_option_arguments(parser, FrontOptions, "server")
    add_option_arguments(parser, ClusterOptions, "cluster")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Serve until SIGINT or SIGTERM."""
    options, front = engine_options(given), FrontOptions(**given_for(given, FrontOptions))
    cluster = ClusterOptions(**given_for(given, ClusterOptions))
    from ranvier.cli.serve import serve

    return serve(options, front, cluster, start_s)
