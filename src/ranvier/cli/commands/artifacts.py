"""`ranvier artifacts ls | inspect | verify | diff | gc`: look after compiled artifacts.

ls [ROOT], inspect ARTIFACT, verify ARTIFACT..., diff ARTIFACT OTHER, diff ARTIFACT --model MODEL
[engine options], gc [ROOT] [--remove NAME ...] [--older-than DAYS] [--yes].
ROOT is by default NEURON_COMPILED_ARTIFACTS, else the user's cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranvier.cli.options.flags import add_engine_arguments, engine_options
from ranvier.cli.options.settings import artifacts_default
from ranvier.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from ranvier.artifact.inventory import Item
    from ranvier.artifact.manifest import ArtifactKey

__all__ = ["add_arguments", "run"]

ACTIONS = ("ls", "inspect", "verify", "diff", "gc")
SHOWN = ("target", "dtype", "max_model_len", "max_num_seqs")
DAY_S = 86_400
DIFFERENT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print JSON (ls, inspect, diff)")
    group = parser.add_argument_group("gc")
    group.add_argument(
        "--remove", nargs="+", default=[], metavar="NAME", help="artifacts to remove"
    )
    group.add_argument("--older-than", type=float, metavar="DAYS", help="remove those built before")
    group.add_argument("--yes", action="store_true", help="do it; without, gc only tells")
    add_engine_arguments(parser, has_model=False)


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """4 where an artifact is not whole, 1 where two differ."""
    del start_s
    return {"ls": _list, "inspect": _inspect, "verify": _verify, "diff": _diff, "gc": _gc}[
        given.action
    ](given)


def _list(given: argparse.Namespace) -> int:
    from ranvier.artifact.inventory import items
    from ranvier.artifact.read import read_manifest

    rows = []
    for item in items(_root(given)):
        row: dict[str, Any] = {
            "name": item.path.name, "kind": item.kind, "bytes": item.size_bytes,
            "built": time.strftime("%Y-%m-%d %H:%M", time.localtime(item.modified_s)),
        }  # fmt: skip
        if item.kind == "artifact":
            try:
                key = read_manifest(item.path).key
            except ArtifactError:
                row["kind"] = "damaged"
            else:
                row |= {name: getattr(key, name) for name in SHOWN}
        rows.append(row)
    if given.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        told = " ".join(str(row.get(n, "-")) for n in SHOWN)
        size = f"{row['bytes'] / 1e6:.0f} MB"
        print(f"{row['name']}  {row['kind']:<10} {row['built']}  {size:>9}  {told}")
    return 0


def _inspect(given: argparse.Namespace) -> int:
    import msgspec

    from ranvier.artifact.read import read_manifest

    manifest = read_manifest(_one(given))
    if given.json:
        print(json.dumps(msgspec.to_builtins(manifest), indent=1))
        return 0
    for name, value in msgspec.to_builtins(manifest.key).items():
        print(f"{name:<20} {value}")
    print(f"{'programs':<20} {', '.join(program.name for program in manifest.programs)}")
    print(f"{'arrays':<20} {len(manifest.arrays)}")
    for name, entry in manifest.files.items():
        print(f"{entry.size:>14} {entry.sha256[:16]} {name}")
    return 0


def _verify(given: argparse.Namespace) -> int:
    from ranvier.artifact.read import read_manifest, verify

    if not given.folders:
        raise ConfigError("verify needs at least one artifact's folder.")
    code = 0
    for folder in given.folders:
        faults = verify(folder)
        for fault in faults:
            print(fault)
        code = 4 if faults else code
        if not faults:
            print(f"{folder}: {len(read_manifest(folder).files)} files are whole")
    return code


def _diff(given: argparse.Namespace) -> int:
    from ranvier.artifact.manifest import differing
    from ranvier.artifact.read import read_manifest

    if given.folders and len(given.folders) == 2:
        other = read_manifest(given.folders[1]).key
    else:
        other = _wanted(given)
    found = differing(read_manifest(given.folders[0]).key, other)
    if given.json:
        print(json.dumps({name: [str(a), str(b)] for name, (a, b) in found.items()}, indent=1))
    else:
        for name, (a, b) in found.items():
            print(f"{name}: {a!r} there, {b!r} here")
        if not found:
            print("no field of the keys differs")
    return DIFFERENT if found else 0


def _wanted(given: argparse.Namespace) -> ArtifactKey:
    """The key that the options on the command line ask for."""
    if len(given.folders) != 1:
        raise ConfigError("diff takes two artifacts, or one and --model with its options.")
    options = engine_options(given)
    from ranvier.cli.wire import key_of, open_model, plan

    checkpoint = open_model(options)
    return key_of(checkpoint, plan(options, checkpoint))


def _gc(given: argparse.Namespace) -> int:
    from ranvier.artifact.inventory import removable, remove

    days = given.older_than
    if days is not None and days < 0:
        raise ConfigError(f"--older-than must be at least 0 days, is {days}.")
    before = None if days is None else time.time() - days * DAY_S
    found = removable(_root(given), given.remove, before)
    for item in found:
        if not given.yes:
            print(f"would remove {_told(item)}")
        elif remove(item):
            print(f"removed {_told(item)}")
        else:
            print(f"kept {_told(item)}: another process builds or uses it")
    if not found:
        print("nothing to remove")
    elif not given.yes:
        print("run again with --yes to remove", file=sys.stderr)
    return 0


def _told(item: Item) -> str:
    return f"{item.path} ({item.kind}, {item.size_bytes / 1e6:.0f} MB)"


def _root(given: argparse.Namespace) -> Path:
    if len(given.folders) > 1:
        raise ConfigError(f"{given.action} takes one folder.")
    return given.folders[0] if given.folders else artifacts_default()


def _one(given: argparse.Namespace) -> Path:
    if len(given.folders) != 1:
        raise ConfigError(f"{given.action} takes one artifact's folder.")
    folder: Path = given.folders[0]
    return folder
