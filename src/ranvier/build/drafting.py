"""What a drafter adds to a build: weights, state and the function; names begin with `draft.`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ranvier.build.pack import pack_weights, weight_shapes
from ranvier.models.draft import DraftSpec
from ranvier.models.spec import DecoderSpec
from ranvier.nn.draft import PREFIX, Drafter
from ranvier.nn.draft_model import ModelDrafter
from ranvier.nn.eagle import EagleDrafter
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import CacheShapes, Kernels
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.drafts.eagle import EagleCheckpoint

__all__ = [
    "Source", "draft_state", "draft_weight_shapes", "make_drafter", "pack_draft", "with_draft",
]  # fmt: skip

Packed = Iterator[tuple[str, NDArray[Any]]]


@dataclass(frozen=True)
class Source:
    """What a build reads: a model's files and its numbers, and the files of its drafter."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    draft: Checkpoint | None = None


class DraftSizes(Protocol):
    """What packing reads of build.programs.Sizes."""

    @property
    def draft(self) -> DraftSpec | None: ...
    @property
    def draft_quantization(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kernels(self) -> str: ...


def make_drafter(draft: DraftSpec, target: DecoderSpec, kernels: Kernels, dtype: str) -> Drafter:
    """The function that drafts inside a step of `target`."""
    if draft.eagle is not None:
        return EagleDrafter(draft.eagle, target, kernels, DTYPES[dtype])
    return ModelDrafter(draft.spec, kernels, DTYPES[dtype])


def draft_weight_shapes(draft: DraftSpec, dtype: str, kernels: str) -> dict[str, tuple[Any, Any]]:
    """(shape, numpy dtype) of the drafter's own weights, by name."""
    shapes = weight_shapes(draft.spec, dtype, kernels)
    if draft.eagle is not None and draft.eagle.is_reduced:
        shapes["ids"] = (draft.eagle.draft_vocab,), np.int32
    return _named(shapes)


def draft_state(cache: CacheShapes) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of the drafter's own state: caches in the target's blocks."""
    return _named({"k": (cache.k, str(cache.dtype)), "v": (cache.v, str(cache.dtype))})


def pack_draft(
    checkpoint: Checkpoint, draft: DraftSpec, dtype: str, kernels: str, *, is_quantised: bool
) -> Packed:
    """As pack_weights, of the drafter's checkpoint; a head's own is an EagleCheckpoint."""
    packed = pack_weights(checkpoint, draft.spec, dtype, kernels, is_quantised=is_quantised)
    for name, array in packed:
        yield f"{PREFIX}{name}", array
    if draft.eagle is not None and draft.eagle.is_reduced:
        assert isinstance(checkpoint, EagleCheckpoint)
        yield f"{PREFIX}ids", checkpoint.ids()


def with_draft(packed: Packed, checkpoint: Checkpoint | None, sizes: DraftSizes) -> Packed:
    """The packed weights of a target, then those of its drafter where it has one."""
    yield from packed
    if sizes.draft is not None:
        assert checkpoint is not None, "a drafter without weights"
        yield from pack_draft(
            checkpoint, sizes.draft, sizes.dtype, sizes.kernels,
            is_quantised=sizes.draft_quantization != "none",
        )  # fmt: skip


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{PREFIX}{name}": value for name, value in found.items()}
