"""Write a draft head with the embedding and the head of its target in the same folder.

The form that NxD Inference reads: the published names, and beside them embed_tokens.weight and
lm_head.weight in the head's own dtype. Of a reduced vocabulary lm_head has its rows alone.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.drafts.eagle import EMBED, HEAD, EagleCheckpoint
from ranvier.weights.safetensors_write import save_shards

__all__ = ["convert_head"]


def convert_head(
    output: Path, head: EagleCheckpoint, target: Checkpoint, embed_name: str
) -> list[str]:
    """Write the folder, whole or not at all; the names of the tensors that were added.

    `embed_name`: the target's embedding. Raises ConfigError where there is something already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: exists and is not an empty folder.")
    names = head.own_names()
    tensors = {stored: head.read(name) for name, stored in names.items()}
    dtype = head.read("fc.weight").dtype
    missing: dict[str, NDArray[Any]] = {}
    if EMBED not in names:
        missing[EMBED] = np.asarray(target.read(embed_name), dtype)
    if HEAD not in names:
        missing[HEAD] = np.asarray(head.read(HEAD), dtype)
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_shards(part, [*tensors.items(), *missing.items()])
        text = json.dumps(head.config, indent=2) + "\n"
        (part / "config.json").write_text(text, encoding="utf-8")
        if output.is_dir():
            output.rmdir()
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(missing)
