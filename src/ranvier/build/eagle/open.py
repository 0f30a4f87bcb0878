"""Open a draft head beside its target: every fault of the pair is found here."""

from __future__ import annotations

from pathlib import Path

from ranvier.core.errors import ConfigError
from ranvier.models.draft import DraftSpec
from ranvier.models.eagle import Method, resolve_eagle
from ranvier.models.spec import DecoderSpec
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.drafts.eagle import EagleCheckpoint

__all__ = ["open_eagle"]


def open_eagle(
    path: Path, target: Checkpoint, spec: DecoderSpec, method: Method | None = None
) -> tuple[EagleCheckpoint, DraftSpec]:
    """The head's tensors and its spec. Raises CheckpointError naming both sides.

    `method`: what the head is said to be; None: what it is.
    """
    head = spec.array("embed" if spec.is_tied else "head").sources[0][0]
    checkpoint = EagleCheckpoint(path, target, head)
    names = str(path), str(target.path)
    found = resolve_eagle(checkpoint.config, checkpoint.own_shapes(), spec, names=names)
    if method not in (None, found.method):
        raise ConfigError(
            f"{path} is an {found.method} head, but the method is {method}.",
            hint=f"Give the method {found.method}.",
        )
    if found.is_reduced:
        checkpoint.ids()  # out of range is an error now, not while packing
    return checkpoint, DraftSpec(found.method, found.decoder, found)
