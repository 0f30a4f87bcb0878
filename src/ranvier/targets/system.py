"""The machine as a seam: run a command, read a file, list a folder. Tests present recorded ones.

Reads only; knows nothing of what is looked for.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["CommandResult", "RealSystem", "Speed", "System"]

COMMAND_S = 10.0
TEXT_BYTES_MAX = 2**20


@dataclass(frozen=True)
class CommandResult:
    """How a command ended; code 127 when it is not there, 124 when it took too long."""

    code: int
    output: str


@dataclass(frozen=True)
class Speed:
    """What one process reached in a short measurement."""

    bandwidth_bytes_s: float
    flops_s: float


class System(Protocol):
    """What a check may ask of a machine."""

    @property
    def environment(self) -> Mapping[str, str]: ...
    @property
    def python(self) -> str: ...
    def run(self, *command: str) -> CommandResult: ...
    def read(self, path: str) -> str | None: ...
    def entries(self, path: str) -> list[str]: ...
    def can_open(self, path: str) -> bool: ...
    def free_bytes(self, path: str) -> int | None: ...
    def package(self, name: str) -> str | None: ...


@dataclass(frozen=True)
class RealSystem:
    """This machine; `environment` comes from the settings."""

    environment: Mapping[str, str] = field(default_factory=dict)
    python: str = field(default_factory=platform.python_version)

    def run(self, *command: str) -> CommandResult:
        """Standard output and error together, at most a MiB, within ten seconds."""
        found = shutil.which(command[0]) or shutil.which(command[0], path="/opt/aws/neuron/bin")
        if found is None:
            return CommandResult(127, f"{command[0]}: not found")
        try:
            done = subprocess.run(
                [found, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, timeout=COMMAND_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return CommandResult(124, f"{command[0]}: no end within {COMMAND_S:g} s")
        except OSError as error:
            return CommandResult(126, str(error))
        return CommandResult(done.returncode, done.stdout[:TEXT_BYTES_MAX].decode(errors="replace"))

    def read(self, path: str) -> str | None:
        """A file's first MiB, None when it can't be read."""
        try:
            with Path(path).open("rb") as file:
                return file.read(TEXT_BYTES_MAX).decode(errors="replace")
        except OSError:
            return None

    def entries(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty when it can't be listed."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def can_open(self, path: str) -> bool:
        """May this process read and write it?"""
        return os.access(path, os.R_OK | os.W_OK)

    def free_bytes(self, path: str) -> int | None:
        """Free space where `path` is, or would be."""
        place = Path(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            return shutil.disk_usage(place).free
        except OSError:
            return None

    def package(self, name: str) -> str | None:
        """The version of an installed distribution."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None
