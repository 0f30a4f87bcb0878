"""The pictures of each golden case, as requests carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ranvier.core.media import ImageItem

__all__ = ["CASES", "GOLDENS", "PICTURES", "cross_spans", "pictures_of", "rope_of"]

GOLDENS = Path(__file__).parent / "vision_goldens"
IMAGE = 5
TILE = dict(shape=(1, 3, 16, 16))


def _patches(rows: int, columns: int) -> dict:
    return dict(shape=(rows * columns, 96), grid=(1, rows, columns))


QWEN = {
    "one": [_patches(4, 6)],
    "three": [_patches(10, 4), _patches(2, 2), _patches(6, 6)],
}


def _tiled(rows: int, columns: int) -> dict:
    return dict(shape=(rows * columns, 3, 16, 16), grid=(1, rows, columns))


TALL = dict(shape=(3, 3, 16, 16), size=(40, 20), grid=(1, 2, 1))
PICTURES: dict[str, dict[str, list[dict]]] = {
    "llava": {"one": [TILE], "two": [TILE, TILE]},
    "llava_next": {
        "tall": [TALL],
        "square": [dict(shape=(5, 3, 16, 16), size=(30, 30), grid=(1, 2, 2))],
        "flat": [dict(shape=(5, 3, 16, 16), size=(24, 32), grid=(1, 2, 2)), TALL],
    },
    "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN,
    "idefics3": {
        "whole": [TILE], "tiles": [dict(shape=(5, 3, 16, 16), grid=(1, 2, 2), runs=5), TILE],
    },
    "smolvlm": {"tiles": [dict(shape=(3, 3, 16, 16), grid=(1, 1, 2), runs=3)]},
    "mllama": {
        "first": [_tiled(1, 2)], "later": [_tiled(2, 2)], "apart": [_tiled(3, 1), _tiled(1, 1)],
        "three": [_tiled(1, 2), _tiled(1, 1), _tiled(2, 1)],
    },
    "mllama_tiles": {
        "one": [_tiled(1, 1)], "two": [_tiled(2, 1)], "three": [_tiled(1, 3)],
        "four": [_tiled(2, 2), _tiled(1, 1)],
    },
    "gemma3": {"one": [TILE], "two": [TILE, TILE]},
    "pixtral": {
        "one": [dict(shape=(1, 3, 12, 20), grid=(1, 3, 5), runs=3)],
        "two": [dict(shape=(1, 3, 4, 8), grid=(1, 1, 2)),
                dict(shape=(1, 3, 8, 24), grid=(1, 2, 6), runs=2)],
    },
}  # fmt: skip
CASES = {
    (family, label): images for family, own in PICTURES.items() for label, images in own.items()
}
"""Shape and grid of the pictures of each (family, case), as tests/parity/make_vision_goldens.py."""


def pixels(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def pictures_of(family: str, label: str, ids: np.ndarray) -> list[ImageItem]:
    """The case's pictures, their spans found in its ids."""
    labels = ["none", *(name for of, name in CASES if of == family)]
    seed, images = labels.index(label), CASES.get((family, label), [])
    runs, items = spans(ids), []
    if family.startswith("mllama"):
        runs = [(int(at), 1) for at in np.flatnonzero(ids == IMAGE)]
    for i, image in enumerate(images):
        given = image.get("shape"), image.get("grid", (1, 1, 1)), image.get("size", (16, 16))
        own = [runs.pop(0) for _ in range(image.get("runs", 1))]
        items.append(
            ImageItem(
                digest=bytes([seed, i]), pixels=pixels(10 * seed + i, given[0]).tobytes(),
                shape=given[0], grid=given[1], size=given[2], spans=tuple(own),
            )
        )  # fmt: skip
    return items


def spans(ids: np.ndarray) -> list[tuple[int, int]]:
    """(start, count) of each run of placeholders."""
    marks = np.flatnonzero(np.diff(np.concatenate([[0], ids == IMAGE, [0]])))
    return [(int(a), int(b - a)) for a, b in zip(marks[::2], marks[1::2], strict=True)]


def cross_spans(images: list[ImageItem], length: int) -> list[tuple[int, int]]:
    """The run of tiles that each token sees: of the pictures that stood last, one behind another.

    Source: the mask of transformers' MllamaProcessor.
    """
    found, tiles, group, last = [(0, 0)] * length, 0, 0, -2
    for image in images:
        if image.start != last + 1:
            group = tiles
        tiles, last = tiles + image.shape[0], image.start
        found[image.start :] = [(group, tiles)] * (length - image.start)
    return found


def rope_of(spec, ids: np.ndarray, images: list[ImageItem]) -> tuple[np.ndarray | None, int]:
    """(positions [3, T], delta) for families with three rope axes."""
    if not spec.rope_axes:
        return None, 0
    from ranvier.media.vision import rope_axes

    found, delta = rope_axes(len(ids), images)
    return np.frombuffer(found, np.int32).reshape(3, -1), delta
