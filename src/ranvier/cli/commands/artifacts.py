"""`ranvier artifacts ls | verify | inspect`: look at compiled artifacts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["ls", "verify", "inspect"])
    parser.add_argument("folder", type=Path)


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """4 when an artifact is not whole."""
    del start_s
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
