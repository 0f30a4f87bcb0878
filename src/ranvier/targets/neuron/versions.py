"""Which versions of compiler, runtime, JAX and plugin belong together.

Source: AWS Neuron release pages, SDK 2.30 and 2.33. Ranvier needs JAX 0.10 or later, so 2.33 is the
only release of the two that it can run on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["PYTHON", "RELEASES", "Release", "release_of", "series", "version_numbers"]

PYTHON = ((3, 11), (3, 13))
"""Python versions of SDK 2.33."""


@dataclass(frozen=True)
class Release:
    """One SDK release; an empty series is one that its page does not tell."""

    sdk: str
    jax: tuple[str, ...]
    """Series of JAX that the plugin takes."""
    jax_neuronx: str
    compiler: str
    runtime: str
    libneuronxla: str
    nki: str = ""


RELEASES = (
    Release(
        sdk="2.33",
        jax=("0.7", "0.8", "0.9", "0.10"),
        jax_neuronx="0.10.0.1.0",
        compiler="2.28",
        runtime="2.35",
        libneuronxla="3",
        nki="0.7",
    ),
    Release(
        sdk="2.30", jax=("0.8", "0.9"), jax_neuronx="", compiler="", runtime="", libneuronxla="3"
    ),
)


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.28.7631.0+ab is (2, 28, 7631, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def series(version: str, count: int = 2) -> str:
    """The first `count` numbers: 2.28.7631.0 is of the series 2.28."""
    return ".".join(map(str, version_numbers(version)[:count]))


def release_of(compiler: str | None, runtime: str | None) -> Release | None:
    """The release that a compiler, or else a runtime, belongs to."""
    for release in RELEASES:
        if compiler and release.compiler and series(compiler) == release.compiler:
            return release
        if not compiler and runtime and release.runtime and series(runtime) == release.runtime:
            return release
    return None
