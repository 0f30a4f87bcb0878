"""The key that ranks share: from a file, from a variable, or made for ranks of one machine.

It proves membership; whoever holds it can take part in a start. Never on a command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from ranvier.core.errors import ConfigError

__all__ = ["file_key", "local_key", "text_key"]

CHARACTERS_MIN = 32
BYTES_MAX = 4096
MAKE = "Make one: python3 -c 'import secrets; print(secrets.token_hex(32))'."


def text_key(text: str, source: str) -> bytes:
    """The key that a text stands for. Raises ConfigError."""
    text = text.strip()
    if len(text) < CHARACTERS_MIN:
        raise ConfigError(
            f"The cluster key of {source} has {len(text)} characters; at least {CHARACTERS_MIN}.",
            hint=MAKE,
        )
    return hashlib.sha256(text.encode()).digest()


def file_key(path: Path) -> bytes:
    """The key in a file that only its owner can read. Raises ConfigError."""
    try:
        status = path.stat()
        text = path.read_bytes()[: BYTES_MAX + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cluster_key_file: {path}: {error}", hint=MAKE) from None
    if status.st_mode & 0o007:
        raise ConfigError(
            f"cluster_key_file: {path}: every user of this machine can read it.",
            hint=f"chmod 600 {path}",
        )
    if len(text) > BYTES_MAX:
        raise ConfigError(f"cluster_key_file: {path}: larger than {BYTES_MAX} bytes.")
    return text_key(text, str(path))


def local_key(folder: Path) -> bytes:
    """The key of this user's ranks on this machine, made when it is not there."""
    path = folder / "cluster.key"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".cluster.key.{os.getpid()}"
    if not path.exists():
        # Linked only when it is whole, and only once: ranks that start together share one.
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return file_key(path)
