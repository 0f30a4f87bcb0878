"""`ranvier convert-eagle DRAFT`: write a head with the embedding and head of its target."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("draft", metavar="DRAFT", type=Path, help="the head's folder")
    parser.add_argument("--target", required=True, help="the model that it drafts for")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--revision", help="of a hub model")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Check the pair, write the folder, say what was added."""
    from ranvier.build.eagle.open import open_eagle
    from ranvier.cli.wire import locate
    from ranvier.models.table import resolve
    from ranvier.weights.checkpoint import open_checkpoint
    from ranvier.weights.drafts.convert import convert_head

    target = open_checkpoint(locate(given.target, given.revision))
    spec = resolve(target.config)
    head, draft = open_eagle(given.draft.expanduser(), target, spec)
    embed = spec.array("embed").sources[0][0]
    added = convert_head(given.output.expanduser(), head, target, embed)
    what = f"with {' and '.join(added)} of {given.target}" if added else "which lacked nothing"
    print(f"{given.output}: an {draft.method} head {what}")
    return None
