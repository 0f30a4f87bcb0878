"""What a drafter adds to a build: weights, state and the function; names begin with `draft.`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ranvier.build.pack import pack_weights, weight_shapes
from ranvier.models.draft import DraftSpec
from ranvier.nn.draft import PREFIX, Drafter
from ranvier.nn.draft_model import ModelDrafter
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import CacheShapes, Kernels
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["draft_state", "draft_weight_shapes", "make_drafter", "pack_draft"]


def make_drafter(draft: DraftSpec, kernels: Kernels, dtype: str) -> Drafter:
    """The function that drafts inside a step."""
    return ModelDrafter(draft.spec, kernels, DTYPES[dtype])


def draft_weight_shapes(draft: DraftSpec, dtype: str, kernels: str) -> dict[str, tuple[Any, Any]]:
    """(shape, numpy dtype) of the drafter's own weights, by name."""
    return _named(weight_shapes(draft.spec, dtype, kernels))


def draft_state(cache: CacheShapes) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of the drafter's own state: caches in the target's blocks."""
    return _named({"k": (cache.k, str(cache.dtype)), "v": (cache.v, str(cache.dtype))})


def pack_draft(
    checkpoint: Checkpoint, draft: DraftSpec, dtype: str, kernels: str, *, is_quantised: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """As pack_weights, of the drafter's checkpoint."""
    packed = pack_weights(checkpoint, draft.spec, dtype, kernels, is_quantised=is_quantised)
    for name, array in packed:
        yield f"{PREFIX}{name}", array


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{PREFIX}{name}": value for name, value in found.items()}
