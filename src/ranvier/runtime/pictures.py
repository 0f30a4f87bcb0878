"""Lays a picture out for its family's encoder: what the runner fills an encode program with.

Pure numpy on the host. `preparation` comes from the artifact (models' VisionSpec): "kind" and
numbers. The arrays have the picture's own sizes; `padded` brings them to the bucket's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.media import ImageItem

__all__ = ["arrange", "padded", "units_of"]

Arrays = dict[str, NDArray[Any]]


def arrange(image: ImageItem, preparation: Mapping[str, Any]) -> Arrays:
    """The arrays of one picture by name, without padding."""
    pixels = np.frombuffer(image.pixels, np.float32).reshape(image.shape)
    kind = preparation["kind"]
    if kind == "grid":
        return {"pixels": pixels, **_grid(image.grid, preparation)}
    found: Arrays = {"pixels": _patches(pixels, int(preparation["patch"]))}
    if kind == "raster":
        found["pixels"] = found["pixels"][0]
        found |= _grid(image.grid, {"merge": preparation["merge"]})
        if preparation["merge"] > 1:
            found["pixels"] = found["pixels"][_merge_order(image.grid, preparation["merge"])]
    elif kind == "anyres":
        found["order"] = _anyres(image, int(preparation["side"]))
    elif kind == "mllama":
        found |= _mllama(image, preparation)
    return found


def units_of(image: ImageItem, unit: str) -> int:
    """How many of the encoder's units a picture has."""
    if unit == "tiles":
        return image.shape[0]
    frames, rows, columns = image.grid
    return frames * rows * columns


def padded(arrays: Arrays, shapes: Mapping[str, tuple[Any, str]]) -> Arrays:
    """Each array at the origin of its bucket's shape; zeros elsewhere."""
    found = {}
    for name, (shape, dtype) in shapes.items():
        found[name] = whole = np.zeros(shape, dtype)
        if name in arrays:
            own = arrays[name]
            whole[tuple(slice(size) for size in own.shape)] = own
    return found


def _patches(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """[N, C, H, W] as rows of patches [N, P, C * size * size], in a convolution's order."""
    count, channels, height, width = pixels.shape
    cut = pixels.reshape(count, channels, height // size, size, width // size, size)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size * size)


def _merge_order(grid: tuple[int, int, int], merge: int) -> NDArray[Any]:
    """Raster indices of a frame's patches so that the patches of one feature lie together."""
    _, rows, columns = grid
    raster = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return raster.transpose(0, 2, 1, 3).reshape(-1)


def _grid(grid: tuple[int, int, int], preparation: Mapping[str, Any]) -> Arrays:
    """Row and column of each patch, who sees whom, and where learned positions lie."""
    frames, rows, columns = grid
    merge = int(preparation["merge"])
    order = _merge_order(grid, merge)
    row, column = order // columns, order % columns
    places = np.stack([row, column], axis=1)
    frame = np.repeat(np.arange(frames), rows * columns)
    labels = [frame + 1]
    window = int(preparation.get("window", 0))
    if window:
        across = -(-columns // merge // window)
        own = (row // merge // window) * across + column // merge // window
        labels.append(frame * (own.max() + 1) + np.tile(own, frames) + 1)
    found: Arrays = {
        "positions": np.tile(places, (frames, 1)).astype(np.int32),
        "labels": np.stack(labels)[:, None].astype(np.int32),
    }
    side = int(preparation.get("side", 0))
    if side:
        found["taps"], found["tap_weights"] = _taps(places, grid, side)
        for name in ("taps", "tap_weights"):
            found[name] = np.tile(found[name], (frames, 1))
    return found


def _taps(
    places: NDArray[Any], grid: tuple[int, int, int], side: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Four entries of a learned side x side table and their weights, corners aligned."""
    taps, weights = [], []
    for axis, size in enumerate(grid[1:]):
        at = (
            places[:, axis].astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        )
        low = np.floor(at)
        taps.append(np.stack([low, np.minimum(low + 1, side - 1)], 1).astype(np.int32))
        part = (at - low).astype(np.float32)
        weights.append(np.stack([1 - part, part], 1))
    both = taps[0][:, :, None] * side + taps[1][:, None, :]
    shares = weights[0][:, :, None] * weights[1][:, None, :]
    return both.reshape(-1, 4), shares.reshape(-1, 4)


def _anyres(image: ImageItem, side: int) -> NDArray[Any]:
    """Which feature fills each placeholder of Llava-Next: the whole picture, then unpadded rows.

    Features lie tile by tile; -1 is the newline's, which the encoder has behind them all.
    """
    own = np.arange(side * side)
    if image.shape[0] == 1:
        return np.append(own, -1).astype(np.int32)
    _, rows, columns = image.grid
    tiles = np.arange(1, 1 + rows * columns).reshape(rows, columns) * side * side
    whole = (tiles[:, None, :, None] + own.reshape(side, side)[None, :, None, :]).reshape(
        rows * side, columns * side
    )
    kept = _unpadded(whole, image.size)
    lines = np.full((len(kept), 1), -1)
    return np.concatenate([own, np.concatenate([kept, lines], 1).reshape(-1)]).astype(np.int32)


def _unpadded(whole: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The part of a grid that the picture covers: it was centred, its shape kept."""
    height, width = size
    rows, columns = whole.shape
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return whole[cut : rows - cut]
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return whole[:, cut : columns - cut]


def _mllama(image: ImageItem, preparation: Mapping[str, Any]) -> Arrays:
    """The aspect ratio's number, and how many tiles are no padding."""
    _, rows, columns = image.grid
    ratios = [tuple(ratio) for ratio in preparation["ratios"]]
    return {
        "ratio": np.asarray([ratios.index((rows, columns)) + 1], np.int32),
        "count": np.asarray([rows * columns], np.int32),
    }
