"""`ranvier collect-env`: versions, variables and checks as text, for a bug report."""

from __future__ import annotations

import argparse
import json

from ranvier.cli.commands.doctor import kernels
from ranvier.cli.options.settings import cache_folder, machine_variables
from ranvier.cli.reports.machine import environment_document, examine
from ranvier.targets.system import RealSystem

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    del start_s
    from ranvier.targets.speed import measure_speed

    system = RealSystem(machine_variables())
    found = examine(system, kernels(), measure_speed(), folder=str(cache_folder()))
    document = environment_document(system, found)
    if given.json:
        print(json.dumps(document, indent=1))
        return None
    for name in ("ranvier", "python", "platform", "instance"):
        print(f"{name}: {document[name] or 'unknown'}")
    print(f"neuron devices: {', '.join(document['neuron_devices']) or 'none'}")
    for title in ("packages", "environment"):
        print(f"{title}:")
        for name, value in document[title].items():
            print(f"  {name}: {value or 'not installed'}")
    print("checks:")
    for finding in found:
        print(f"  {finding.status}: {finding.name}: {finding.detail}")
    return None
