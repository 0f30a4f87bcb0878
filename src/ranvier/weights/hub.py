"""Models of the Hugging Face hub, by id: only the files that a model needs, through its own client.

`huggingface_hub` (extra: hub) is imported only here and only when an id is asked for. HF_HOME,
HF_TOKEN and HF_HUB_OFFLINE are the client's own and are honoured by it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from ranvier.core.errors import CheckpointError

__all__ = ["fetch_adapter", "fetch_hub", "is_hub_id"]

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
NEEDED = [
    "config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
]  # fmt: skip
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
NEVER = ["*/*", "consolidated*.safetensors"]


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form org/name."""
    return ID.fullmatch(name) is not None


def fetch_adapter(name: str) -> Path:
    """An adapter's folder in the hub's cache. Raises CheckpointError, as fetch_hub does."""
    return fetch_hub(name, needed=ADAPTER)


def fetch_hub(
    name: str,
    revision: str | None = None,
    folder: str | None = None,
    needed: Sequence[str] = tuple(NEEDED),
) -> Path:
    """The model's folder in the hub's cache, downloaded when it is not there.

    Raises CheckpointError: no client, an unknown id or revision, no access, no network.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"{name} is a hub id, and the package huggingface_hub is not installed.",
            hint="pip install 'ranvier[hub]'; or give a folder or a .gguf file.",
        ) from None
    try:
        found = hub.snapshot_download(
            name,
            revision=revision,
            cache_dir=folder,
            allow_patterns=list(needed),
            ignore_patterns=NEVER,
        )  # fmt: skip
    except (OSError, ValueError) as error:  # the client's errors derive from these
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{name}{'@' + revision if revision else ''} can't be had from the hub: "
            f"{type(error).__name__}: {reason}",
            hint="Check the id, HF_TOKEN for a gated model, and HF_HUB_OFFLINE.",
        ) from None
    path = Path(found)
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: the repository has no *.safetensors files; other weights are not read."
        )
    return path
