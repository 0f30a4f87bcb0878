"""Reference files of the accuracy tool: prompts, greedy tokens and their logits, in one .npz.

Arrays `prompt_i` int32 [P], `tokens_i` int32 [N], `logits_i` f32 [N, V] for i = 0, 1, ..., and
`meta`, JSON as uint8. Never a pickle: another engine can write them with numpy alone.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError

__all__ = ["Reference", "ReferencePrompt", "load_reference", "save_reference"]

FORMAT = 1
PROMPTS_MAX = 1024


@dataclass(frozen=True)
class ReferencePrompt:
    """One prompt; `logits_NV[i]` are those that `token_ids[i]` was chosen from."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logits_NV: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What a model answered, and who made it."""

    model: str
    made_by: str
    prompts: tuple[ReferencePrompt, ...]

    @property
    def vocab_size(self) -> int:
        return int(self.prompts[0].logits_NV.shape[1])


def save_reference(path: Path, reference: Reference) -> None:
    """Write the file, replacing an old one whole. Raises ConfigError when it can't be written."""
    meta = {"format": FORMAT, "model": reference.model, "made_by": reference.made_by}
    arrays: dict[str, Any] = {
        "meta": np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    }
    for i, prompt in enumerate(reference.prompts):
        arrays[f"prompt_{i}"] = np.asarray(prompt.prompt_ids, np.int32)
        arrays[f"tokens_{i}"] = np.asarray(prompt.token_ids, np.int32)
        arrays[f"logits_{i}"] = prompt.logits_NV
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}.") from error


def load_reference(path: Path) -> Reference:
    """Read and check a file. Raises ConfigError that names what is wrong."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT:
            raise ConfigError(f"{path}: format {meta['format']!r}; this version reads {FORMAT}.")
        names = (str(meta["model"]), str(meta["made_by"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} is no reference file: {error}.",
            hint="Make one: ranvier accuracy MODEL --make-reference FILE.",
        ) from error
    count = sum(name.startswith("prompt_") for name in arrays)
    if not 0 < count <= PROMPTS_MAX:
        raise ConfigError(f"{path}: it holds {count} prompts, must be 1 to {PROMPTS_MAX}.")
    prompts = tuple(_prompt(path, arrays, i) for i in range(count))
    if len({prompt.logits_NV.shape[1] for prompt in prompts}) != 1:
        raise ConfigError(f"{path}: the logits have vocabularies of different sizes.")
    return Reference(*names, prompts)


def _prompt(path: Path, arrays: dict[str, NDArray[Any]], i: int) -> ReferencePrompt:
    parts = [arrays.get(f"{name}_{i}") for name in ("prompt", "tokens", "logits")]
    ids, tokens, logits = parts
    if ids is None or tokens is None or logits is None:
        raise ConfigError(f"{path}: prompt_{i}, tokens_{i} or logits_{i} is missing.")
    is_sound = (
        ids.ndim == 1 and tokens.ndim == 1 and ids.dtype.kind == tokens.dtype.kind == "i"
        and ids.size > 0 and tokens.size > 0 and logits.dtype == np.float32
        and logits.ndim == 2 and len(logits) == len(tokens) and bool(np.isfinite(logits).all())
        and min(ids.min(), tokens.min()) >= 0
        and max(ids.max(), tokens.max()) < logits.shape[1]
    )  # fmt: skip
    if not is_sound:
        raise ConfigError(
            f"{path}: entry {i} must be ids int [P], tokens int [N] within the vocabulary and "
            f"finite f32 logits [N, V]; found {ids.dtype} {ids.shape}, {tokens.dtype} "
            f"{tokens.shape}, {logits.dtype} {logits.shape}."
        )
    return ReferencePrompt(tuple(ids.tolist()), tuple(tokens.tolist()), logits)
