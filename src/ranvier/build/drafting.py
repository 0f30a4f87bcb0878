"""What a drafter adds to a build: weights, state and the function; names begin with `draft.`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.build.pack import Form, pack_ranks, weight_shapes
from ranvier.build.shard.cut import Shard
from ranvier.build.shard.rank import ONE, Parallel, rank_spec
from ranvier.models.draft import DraftSpec
from ranvier.models.spec import DecoderSpec
from ranvier.nn.draft import PREFIX, Drafter
from ranvier.nn.draft_model import ModelDrafter
from ranvier.nn.eagle import EagleDrafter
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import CacheShapes, Kernels
from ranvier.nn.shards import Shards
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.drafts.eagle import EagleCheckpoint

__all__ = [
    "Source", "draft_state", "draft_weight_shapes", "make_drafter", "pack_draft",
]  # fmt: skip

Packed = Iterator[tuple[str, list[NDArray[Any]]]]


@dataclass(frozen=True)
class Source:
    """What a build reads: a model's files and its numbers, and the files of its drafter."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    draft: Checkpoint | None = None


def make_drafter(
    draft: DraftSpec, target: DecoderSpec, kernels: Kernels, dtype: str, parallel: Parallel = ONE
) -> Drafter:
    """The function that drafts inside a step of `target`, whose numbers are a rank's."""
    own, kind = rank_spec(draft.spec, parallel), DTYPES[dtype]
    shards = None
    if parallel.ranks > 1:
        shards = Shards(draft.spec.vocab_size, parallel.tensor, parallel.pipeline)
    if draft.eagle is not None:
        head = replace(draft.eagle, decoder=own)
        return EagleDrafter(head, target, kernels, kind, shards)
    return ModelDrafter(own, kernels, kind, shards)


def draft_weight_shapes(
    draft: DraftSpec, dtype: str, kernels: str, parallel: Parallel = ONE
) -> dict[str, tuple[Any, Any]]:
    """(shape, numpy dtype) of a rank's part of the drafter's own weights, by name."""
    shapes = weight_shapes(draft.spec, dtype, kernels, parallel)
    if draft.eagle is not None and draft.eagle.is_reduced:
        shapes["ids"] = (draft.eagle.draft_vocab,), np.int32
    return _named(shapes)


def draft_state(cache: CacheShapes) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of the drafter's own state: caches in the target's blocks."""
    return _named({"k": (cache.k, str(cache.dtype)), "v": (cache.v, str(cache.dtype))})


def pack_draft(
    checkpoint: Checkpoint, draft: DraftSpec, form: Form, parallel: Parallel = ONE
) -> Packed:
    """As pack_ranks, of the drafter's checkpoint; a head's own is an EagleCheckpoint."""
    shards = [Shard(draft.spec, parallel, rank) for rank in range(parallel.ranks)]
    for name, parts in pack_ranks(checkpoint, shards, form):
        yield f"{PREFIX}{name}", parts
    if draft.eagle is not None and draft.eagle.is_reduced:
        assert isinstance(checkpoint, EagleCheckpoint)
        yield f"{PREFIX}ids", [checkpoint.ids()] * parallel.ranks


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{PREFIX}{name}": value for name, value in found.items()}
