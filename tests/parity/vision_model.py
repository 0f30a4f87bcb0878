"""One family's tiny model with its encode and text programs, driven as the runner drives them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parity.vision_cases import CASES, GOLDENS, cross_spans, pictures_of, rope_of

from ranvier.build.pack import pack_weights
from ranvier.build.programs import Sizes, programs, state_shapes
from ranvier.build.vision.encoders import is_seeing, resolve_vision
from ranvier.build.vision.padding import with_stored_padding
from ranvier.core.buckets import BucketSet, smallest
from ranvier.core.media import ImageItem, VisionInfo
from ranvier.core.program import ProgramShape
from ranvier.core.step import Chunk, ChunkMedia, StepPlan
from ranvier.models.table import resolve
from ranvier.native import library
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.table import select
from ranvier.runtime.pictures import arrange, padded, units_of
from ranvier.runtime.runner import _pack
from ranvier.weights.checkpoint import open_checkpoint

__all__ = ["CASES", "GOLDENS", "Case", "VisionModel", "case_of", "media_of", "sizes_of"]

LENGTH, BLOCK = 192, 32
STEP = ProgramShape("step", 128, 2)
PREFILL, DECODE = ProgramShape("prefill", 128, 1, LENGTH), ProgramShape("decode", 2, 2, LENGTH)


@dataclass
class Case:
    """A prompt and its pictures; `rows` is where each picture's features were put."""

    ids: np.ndarray
    images: list[ImageItem]
    rope: np.ndarray | None
    rope_delta: int
    rows: list[list[int]]


def sizes_of(spec, kernels, dtype="float32", **changes):
    sizes = Sizes(
        dtype=dtype, kernels=kernels, max_model_len=LENGTH, max_num_seqs=2, block_tokens=BLOCK,
        block_count=2 * LENGTH // BLOCK + 1, kv_layout="block",
        buckets=BucketSet(tokens=(128,)), logprobs_max=0, edits_max=1,
        vision=resolve_vision(spec, LENGTH, 3),
    )  # fmt: skip
    return replace(sizes, **changes)


class VisionModel:
    """Compiles the encode programs and text programs of all logits, ragged ones or not."""

    def __init__(
        self, family: str, kernels: str, dtype: str = "float32", *, is_ragged: bool = True
    ) -> None:
        if kernels == "cpu" and not library.register():
            pytest.skip("the kernels are not built")
        checkpoint = open_checkpoint(GOLDENS / family)
        self.family = family
        self.spec = with_stored_padding(resolve(checkpoint.config), checkpoint)
        sizes = sizes_of(self.spec, kernels, dtype)
        self.info, self.vision = sizes.vision, self.spec.vision
        packed = pack_weights(checkpoint, self.spec, dtype, kernels)
        weights = {name: jnp.asarray(array) for name, array in packed}
        self.seeing = {n: w for n, w in weights.items() if is_seeing(n)}
        self.weights = {n: w for n, w in weights.items() if not is_seeing(n)}
        self.is_ragged, self.programs = is_ragged, {}
        for shape in (STEP,) if is_ragged else (PREFILL, DECODE):
            layout = shape.layout(BLOCK, LENGTH, self.info)
            decoder = Decoder(self.spec, select(kernels), layout, 0)
            self.programs[shape] = layout, jax.jit(decoder.logits_of_all, donate_argnums=1)
        self.encoders = {
            p.shape.tokens: jax.jit(p.function, donate_argnums=1)
            for p in programs(self.spec, sizes)
            if p.shape.family in ("patches", "tiles")
        }
        # A poisoned state: what was never written must never be read.
        self.state = {
            name: jnp.full(shape, jnp.nan if "float" in kind else 0, kind)
            for name, (shape, kind) in state_shapes(self.spec, sizes).items()
        }

    def case(self, label: str, ids: np.ndarray) -> Case:
        return case_of(self.family, self.spec, label, ids)

    def encode(self, case: Case) -> np.ndarray:
        """Encode every picture; returns the features, one below the other."""
        at, found = 1, []
        for image in case.images:
            units = smallest(self.info.units, units_of(image, self.info.unit))
            arrays = arrange(image, self.vision.preparation)
            inputs = padded(arrays, self.vision.encoder.inputs(units))
            padding, count = self.info.rows, image.token_count
            if self.info.is_cross:
                padding, count = 0, image.shape[0]
            rows = np.full(self.vision.encoder.outputs(units), padding, np.int32)
            own = list(range(at, at + count))
            rows[:count] = own
            inputs["rows"] = rows
            names = ("cross_k", "cross_v") if self.info.is_cross else ("features",)
            state = {name: self.state[name] for name in names}
            self.state.update(self.encoders[units](self.seeing, state, inputs))
            case.rows.append(own)
            found.append(self.features(names, np.asarray(own)))
            at += count
        return np.concatenate(found)

    def features(self, names: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
        """What lies in rows: features, or by layer keys and values of tiles."""
        if not self.info.is_cross:
            return np.asarray(self.state["features"][rows], np.float32)
        both = [np.asarray(self.state[name][:, rows], np.float32) for name in names]
        layers, tiles, keys = both[0].shape[:3]
        whole = np.stack([x.reshape(layers, tiles * keys, -1) for x in both], axis=1)
        return whole.transpose(2, 0, 1, 3).reshape(tiles * keys, -1)

    def run(self, case: Case, start: int, ids: np.ndarray) -> np.ndarray:
        """Logits of a chunk from `start`, the case's pictures in place."""
        stop = start + len(ids)
        blocks = list(range(1, 1 + -(-stop // BLOCK)))
        chunk = Chunk(
            start, list(map(int, ids)), blocks, media=media_of(self.info, case, start, stop)
        )
        shape = STEP if self.is_ragged else DECODE if len(ids) == 1 else PREFILL
        layout, program = self.programs[shape]
        meta = _pack(StepPlan(shape, [chunk], []), layout)
        self.state, logits = program(self.weights, self.state, jnp.asarray(meta))
        return np.asarray(logits)[: len(ids)]

    def together(self, cases: list[Case]) -> list[np.ndarray]:
        """Logits of whole prompts, all in one ragged step."""
        chunks = []
        for i, case in enumerate(cases):
            stop, first = len(case.ids), 1 + i * (LENGTH // BLOCK)
            blocks = list(range(first, first + -(-stop // BLOCK)))
            media = media_of(self.info, case, 0, stop)
            chunks.append(Chunk(0, list(map(int, case.ids)), blocks, media=media))
        layout, program = self.programs[STEP]
        meta = _pack(StepPlan(STEP, chunks, []), layout)
        self.state, logits = program(self.weights, self.state, jnp.asarray(meta))
        bounds = np.cumsum([0, *(len(case.ids) for case in cases)])
        return [np.asarray(logits)[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    def prefill(self, case: Case, cuts: tuple[int, ...] = ()) -> np.ndarray:
        bounds = (0, *(cuts or range(STEP.tokens, len(case.ids), STEP.tokens)), len(case.ids))
        pairs = zip(bounds, bounds[1:], strict=False)
        return np.concatenate([self.run(case, a, case.ids[a:b]) for a, b in pairs])

    def decode(self, case: Case, logits: np.ndarray, count: int) -> list[int]:
        """Greedy tokens behind the prompt."""
        tokens = [int(np.argmax(logits))]
        while len(tokens) < count:
            start = len(case.ids) + len(tokens) - 1
            tokens.append(int(np.argmax(self.run(case, start, np.asarray(tokens[-1:]))[-1])))
        return tokens


def media_of(info: VisionInfo, case: Case, start: int, stop: int) -> ChunkMedia:
    """What a chunk takes of the case's pictures."""
    if info.is_cross:
        blocks = [block for own in case.rows for block in own]
        whole = cross_spans(case.images, max(stop, len(case.ids)))
        return ChunkMedia(cross_blocks=blocks, cross_spans=whole[start:stop])
    rows, sees = np.full(stop, -1), np.arange(stop)
    for image, own in zip(case.images, case.rows, strict=True):
        left = iter(own)
        for first, count in image.spans:
            for position in range(first, first + count):
                row = next(left)
                if position < stop:
                    rows[position], sees[position] = row, first + count - 1
    found = ChunkMedia(feature_rows=rows[start:].tolist())
    if case.rope is not None:
        extra = np.arange(len(case.ids), max(stop, len(case.ids))) + case.rope_delta
        whole = np.concatenate([case.rope, np.tile(extra, (3, 1))], axis=1)
        found = replace(found, rope=whole[:, start:stop].T.tolist())
    if info.is_whole:
        found = replace(found, sees_to=sees[start:].tolist())
    return found


def case_of(family: str, spec, label: str, ids: np.ndarray) -> Case:
    """A golden case with its pictures."""
    images = pictures_of(family, label, ids)
    rope, delta = rope_of(spec, ids, images)
    return Case(ids, images, rope, delta, [])
