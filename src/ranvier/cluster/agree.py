"""What ranks must have in common, and how they differ: facts by name, compared as text.

Knows nothing of the channel.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ranvier.core.errors import ConfigError
from ranvier.version import __version__

__all__ = ["compare", "refuse", "source_hash", "start_facts"]

LOCAL_OPTIONS = frozenset(
    {
        "model", "tokenizer", "download_dir", "artifacts", "node_rank", "master_addr",
        "cluster_key_file", "chat_template", "from_nxdi",
    }
)  # fmt: skip
"""Options that name places of one machine; what lies there is compared by the artifact's key."""
SHOWN = 120


def source_hash() -> str:
    """Hash of every source of this package, and of its kernels."""
    top, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(top.rglob("*")):
        if path.suffix in (".py", ".so"):
            digest.update(str(path.relative_to(top)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def start_facts(options: Any, count: int) -> dict[str, str]:
    """What must be equal before anything is built. `options` is a dataclass."""
    facts = {
        "ranks": str(count),
        "version": __version__,
        "sources": source_hash(),
        "python": platform.python_version(),
    }
    for name, value in asdict(options).items():
        if name not in LOCAL_OPTIONS:
            facts[f"option {name}"] = json.dumps(value, sort_keys=True, default=str)
    return facts


def compare(ours: Mapping[str, str], theirs: Mapping[str, str], who: str) -> list[str]:
    """One line for each fact in which rank 0 and another rank differ."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        f"{name}: {_shown(ours.get(name))} at rank 0, {_shown(theirs.get(name))} at {who}"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def refuse(stage: str, differences: list[str]) -> None:
    """Raise ConfigError when there are differences."""
    if differences:
        raise ConfigError(
            f"The ranks differ ({stage}): {'; '.join(differences)}.",
            hint="Start every rank with the same options, the same code and the same model.",
        )


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= SHOWN else value[:SHOWN] + "..."
