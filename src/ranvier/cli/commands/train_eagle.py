"""`ranvier train-eagle MODEL`: train a small draft head for a model, on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf file or a model's name")
    parser.add_argument("--output", required=True, type=Path, help="the folder of the head")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, metavar="FILE", help="JSON lines to learn from")
    data.add_argument(
        "--self-generate", type=int, metavar="N",
        help="learn from the model's own answers to N prompts of ours",
    )  # fmt: skip
    parser.add_argument("--method", choices=("eagle", "eagle3"), default="eagle3")
    size = parser.add_argument_group("the head")
    size.add_argument("--intermediate", type=int, help="MLP size; default: 1.5 x hidden")
    size.add_argument("--draft-vocab", type=int, default=4096, help="ids that are learnt (4096)")
    size.add_argument(
        "--aux-layers", type=int, nargs="+", metavar="I",
        help="eagle3: after how many layers it looks; default: 2, the middle, the last but 3",
    )  # fmt: skip
    course = parser.add_argument_group("the course")
    course.add_argument("--tokens", type=int, default=192, help="length of a row (192)")
    course.add_argument("--epochs", type=int, default=5, help="(5)")
    course.add_argument("--unroll", type=int, default=3, help="draft steps that are unrolled (3)")
    course.add_argument(
        "--unroll-epochs", type=int, default=2, help="the last epochs, which unroll (2)"
    )
    course.add_argument("--batch-rows", type=int, default=2, help="rows a step (2)")
    course.add_argument(
        "--rate", type=float, default=2e-3, help="the highest learning rate (0.002)"
    )
    course.add_argument("--held-out", type=int, default=64, help="rows to measure on (64)")
    course.add_argument("--seed", type=int, default=0)
    parser.add_argument("--revision", help="of a hub model")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Data, features, training, the folder; each goes on where it ended."""
    from ranvier.cli.train import train_head

    return train_head(given, start_s)
