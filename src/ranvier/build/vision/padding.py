"""Whether the tiles of padding of Llama 3.2 Vision are equal: a fact of the checkpoint.

Published checkpoints hold zeros for them in their tables of positions; a training may have changed
that. Then every tile is computed, as the reference does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ranvier.core.errors import CheckpointError
from ranvier.models.spec import DecoderSpec, VisionSpec
from ranvier.nn.vision.mllama import MllamaEncoder
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.renamed import Renamed

__all__ = ["with_stored_padding"]

TABLES = ("vision.tile_positions", "vision.pre_tile", "vision.post_tile")


def with_stored_padding(spec: DecoderSpec, checkpoint: Checkpoint) -> DecoderSpec:
    """The model with an encoder that computes all tiles, where the checkpoint tells them apart.

    Unchanged for other families, and where the weights are not here.
    """
    vision = spec.vision
    if vision is None or not isinstance(vision.encoder, MllamaEncoder):
        return spec
    if all(_are_equal(spec, vision, vision.encoder.tiles, checkpoint)):
        return spec
    encoder = dataclasses.replace(vision.encoder, has_equal_padding=False)
    vision = dataclasses.replace(vision, encoder=encoder, units=(encoder.tiles,))
    return dataclasses.replace(spec, vision=vision)


def _are_equal(
    spec: DecoderSpec, vision: VisionSpec, tiles: int, checkpoint: Checkpoint
) -> Iterator[bool]:
    """For each table and aspect ratio whether the tiles behind the picture's are equal."""
    if spec.prefixes:
        checkpoint = Renamed(checkpoint, spec.prefixes)
    ratios = vision.preparation["ratios"]
    for name in TABLES:
        ((source,),) = spec.array(name).sources
        try:
            table = checkpoint.read(source).reshape(len(ratios) + 1, tiles, -1)
        except (CheckpointError, ValueError):
            continue  # what is missing or of another size is told when it is packed
        for number, (rows, columns) in enumerate(ratios, 1):
            padding = table[number, rows * columns :]
            yield bool(np.all(padding == padding[:1]))
