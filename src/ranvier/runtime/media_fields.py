"""Fills the fields that the steps of a model with pictures have beside all others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.layout import MetaLayout
from ranvier.core.step import Chunk, ChunkMedia

__all__ = ["pack_media"]

NOTHING = ChunkMedia()


def pack_media(meta: NDArray[np.int32], chunks: list[Chunk], layout: MetaLayout) -> None:
    """Put each chunk's media into its tokens' places; padding: no feature, no cross blocks."""
    fields = {name: meta[at] for name, at in layout.slices.items()}
    if "feature_source" in fields:
        fields["feature_source"][:] = -1
    done, row = 0, layout.tokens // layout.rows if layout.family == "decode" else 0
    for i, chunk in enumerate(chunks):
        stop = done + len(chunk.token_ids)
        _put(fields, chunk, i, slice(done, stop), layout)
        done = done + row if row else stop  # rows of a decode step are equally long


def _put(fields: dict[str, Any], chunk: Chunk, i: int, at: slice, layout: MetaLayout) -> None:
    media = chunk.media or NOTHING
    positions = fields["positions"][at]
    if media.feature_rows:
        fields["feature_source"][at] = media.feature_rows
        # A placeholder need not be in the vocabulary.
        ids = fields["token_ids"][at]
        ids[fields["feature_source"][at] >= 0] = 0
    if "rope_positions" in fields:
        axes = fields["rope_positions"].reshape(3, layout.tokens)[:, at]
        axes[:] = np.asarray(media.rope, np.int32).T if media.rope else positions
    if "sees_to" in fields:
        fields["sees_to"][at] = media.sees_to or positions
    if "cross_tables" in fields and media.cross_blocks:
        tables = fields["cross_tables"].reshape(layout.rows, layout.cross_blocks)
        tables[i, : len(media.cross_blocks)] = media.cross_blocks
        spans = np.asarray(media.cross_spans, np.int32)
        fields["cross_from"][at], fields["cross_to"][at] = spans[:, 0], spans[:, 1]
