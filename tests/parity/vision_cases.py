"""The pictures of each golden case, as requests carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ranvier.core.media import ImageItem

__all__ = ["CASES", "GOLDENS", "pictures_of", "rope_of"]

GOLDENS = Path(__file__).parent / "vision_goldens"
IMAGE = 5
CASES: dict[tuple[str, str], list[dict]] = {
    ("llava", "one"): [dict(shape=(1, 3, 16, 16))],
    ("llava", "two"): [dict(shape=(1, 3, 16, 16))] * 2,
}
"""Shape and grid of the pictures of each (family, case), as tests/parity/make_vision_goldens.py."""


def pixels(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def pictures_of(family: str, label: str, ids: np.ndarray) -> list[ImageItem]:
    """The case's pictures, their spans found in its ids."""
    labels = ["none", *(name for of, name in CASES if of == family)]
    seed, images = labels.index(label), CASES.get((family, label), [])
    runs, items = spans(ids), []
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


def rope_of(spec, ids: np.ndarray, images: list[ImageItem]) -> tuple[np.ndarray | None, int]:
    """(positions [3, T], delta) for families with three rope axes."""
    if not spec.rope_axes:
        return None, 0
    from ranvier.media.vision import rope_axes

    found, delta = rope_axes(len(ids), images)
    return np.frombuffer(found, np.int32).reshape(3, -1), delta
