"""`ranvier doctor`: is this machine ready? One line a check, with the fix where it is not."""

from __future__ import annotations

import argparse
import json

from ranvier.cli.options.settings import cache_folder, machine_variables
from ranvier.cli.reports.machine import environment_document, examine, has_failed, lines
from ranvier.targets.checks import Kernels
from ranvier.targets.system import RealSystem

__all__ = ["add_arguments", "run"]

TARGETS = ("auto", "cpu", "neuron")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "what to be ready for; auto: neuron where there is a device [auto]"
    parser.add_argument("--target", choices=TARGETS, default="auto", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """1 when a check failed; warnings are 0."""
    del start_s
    from ranvier.targets.speed import measure_speed

    system = RealSystem(machine_variables())
    folder = str(cache_folder())
    found = examine(system, kernels(), measure_speed(), folder=folder, target=given.target)
    if given.json:
        print(json.dumps(environment_document(system, found), indent=1))
    else:
        print(lines(found))
    return 1 if has_failed(found) else None


def kernels() -> Kernels:
    """The kernel library as this process loads it."""
    from ranvier.native import library

    return Kernels(library.library_path().is_file(), library.isa())
