"""Read a Dockerfile: its instructions, lines joined, one stage after the other."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ROOT", "environment", "instructions", "runs"]

ROOT = Path(__file__).parents[3]


def instructions(name):
    """[(instruction, argument)] of docker/<name>."""
    text = (ROOT / "docker" / name).read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in kept]


def runs(name):
    """The shell lines in order."""
    return [argument for word, argument in instructions(name) if word == "RUN"]


def environment(name):
    """The variables of every ENV."""
    found = {}
    for word, argument in instructions(name):
        if word == "ENV":
            found.update(pair.split("=", 1) for pair in argument.split())
    return found
