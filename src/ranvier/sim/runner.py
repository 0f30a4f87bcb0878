"""A device made of dictionaries: it checks every plan and remembers what each block holds.

The token it draws is a function of the sequence's true history as found through the block table: a
wrong block, a stale block or a missed write gives a wrong token, not only a wrong count.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import DeviceError, StateLost
from ranvier.core.media import ImageItem
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan, StepResult
from ranvier.sim.pictures import Feature, Seen, seen

__all__ = ["SimulatedRunner", "next_token"]


def next_token(history: Sequence[Seen], uniform: float, vocab_size: int, digest: str = "") -> int:
    """What the simulated model says after `history`, with the adapter of that digest."""
    data = repr((history, round(uniform, 6), *([digest] if digest else []))).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little") % vocab_size


class SimulatedRunner:
    """A Runner without a device.

    `fault_rate` is the share of steps that raise DeviceError at dispatch, `late_fault_rate` of
    those that ran and raise it when they are collected. `loss_rate` is the share of steps, at
    dispatch or when collected, that take the state with them; `encode_fault_rate` is that of
    pictures whose encoding raises DeviceError.
    """

    def __init__(
        self,
        info: RunnerInfo,
        *,
        fault_rate: float = 0.0,
        late_fault_rate: float = 0.0,
        loss_rate: float = 0.0,
        encode_fault_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._info = info
        self._cache: dict[tuple[int, int], tuple[int, Seen, str]] = {}
        self._digests: dict[int, str] = {0: ""}
        self._sampled: list[int] = []
        self._random = random.Random(seed)
        self._fault_rate = fault_rate
        self._late_fault_rate = late_fault_rate
        self._loss_rate = loss_rate
        self._encode_fault_rate = encode_fault_rate
        self._epoch = 0
        self.skill = 0.8
        """Share of the simulated drafter's guesses that are right."""
        self.steps = 0
        self.encodings = 0
        self.features: dict[int, Feature] = {}
        self.on_step: Callable[[StepPlan], None] | None = None

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def dispatch(self, plan: StepPlan) -> object:
        """Run the plan at once; the handle is its result."""
        self.steps += 1
        self._check(plan)
        if self.on_step is not None:
            self.on_step(plan)
        if self._random.random() < self._fault_rate:
            raise DeviceError("The simulated device failed.")
        if self._random.random() < self._loss_rate:
            self._lose()
            raise StateLost("The simulated device failed and lost its state.")
        for chunk in plan.chunks:
            self._write(chunk)
        tokens = [self._answer(plan, sample) for sample in plan.samples]
        self._sampled = tokens
        return self._result(tokens, self._guess(plan, tokens)), self._epoch

    def collect(self, handle: object) -> StepResult:
        if self._random.random() < self._late_fault_rate:
            raise DeviceError("The simulated device failed after its launch.")
        assert isinstance(handle, tuple)
        result, epoch = handle
        if epoch != self._epoch:
            raise DeviceError("The simulated step was launched on a state that is lost.")
        if self._random.random() < self._loss_rate:
            self._epoch += 1  # what was launched since then fails too
            self._lose()
            raise StateLost("The simulated device lost its state after a launch.")
        assert isinstance(result, StepResult)
        return result

    def _lose(self) -> None:
        self._cache, self._sampled, self.features, self._digests = {}, [], {}, {0: ""}

    def encode(self, image: ImageItem, rows: list[int]) -> None:
        """Remember which picture's features lie in which rows."""
        vision = self._info.vision
        assert vision is not None
        assert len(rows) == (image.shape[0] if vision.is_cross else image.token_count)
        assert all(vision.is_cross <= row < vision.rows for row in rows)
        if self._random.random() < self._encode_fault_rate:
            raise DeviceError("The simulated encoder failed.")
        self.features.update({row: (image.digest, i) for i, row in enumerate(rows)})
        self.encodings += 1

    def place_adapter(self, slot: int, adapter: AdapterWeights | None) -> Iterator[None]:
        """Fill a slot in as many pieces as the adapter has; it can be used after the last."""
        assert 0 < slot <= self._info.adapter_slots
        self._digests.pop(slot, None)
        if adapter is None:
            return
        for _ in range(adapter.pieces):
            yield
        self._digests[slot] = adapter.digest

    def close(self) -> None: ...

    def _check(self, plan: StepPlan) -> None:
        info, program = self._info, plan.program
        assert program in info.programs
        assert 0 < plan.token_count <= program.tokens
        assert len(plan.chunks) <= program.rows
        assert len(plan.samples) <= (program.samples or program.rows)
        written: set[tuple[int, int]] = set()
        for chunk in plan.chunks:
            assert chunk.slot in self._digests, f"slot {chunk.slot} holds no adapter"
            stop = chunk.start + len(chunk.token_ids)
            assert stop <= (program.context or info.model_len_max)
            assert program.family != "decode" or len(chunk.token_ids) == 1 + chunk.drafts
            if program.family == "decode":
                row = program.tokens // program.rows
                assert len(chunk.token_ids) <= row and chunk.start + row <= program.context
            assert len(chunk.block_ids) * info.block_tokens >= stop
            assert all(0 < block < info.block_count for block in chunk.block_ids)
            for position in range(chunk.start, stop):
                slot = self._slot(chunk, position)
                assert slot not in written, f"two sequences write slot {slot}"
                written.add(slot)

    def _slot(self, chunk: Chunk, position: int) -> tuple[int, int]:
        size = self._info.block_tokens
        return chunk.block_ids[position // size], position % size

    def _write(self, chunk: Chunk) -> None:
        ids = chunk.token_ids
        if chunk.from_previous >= 0:
            ids = [self._sampled[chunk.from_previous]]
        for i, token in enumerate(ids):
            position = chunk.start + i
            look = seen(chunk, i, token, self.features)
            written = (position, look, self._digests[chunk.slot])
            self._cache[self._slot(chunk, position)] = written

    def _history(self, chunk: Chunk, stop: int) -> list[Seen]:
        tokens: list[Seen] = []
        for position in range(stop):
            found, token, digest = self._cache[self._slot(chunk, position)]
            assert found == position, f"block holds position {found}, not {position}"
            assert digest == self._digests[chunk.slot], "a block was written by another adapter"
            tokens.append(token)
        return tokens

    def _answer(self, plan: StepPlan, sample: Sample) -> int:
        if sample.target_id >= 0:
            return sample.target_id
        chunk = plan.chunks[sample.chunk]
        history = self._history(chunk, chunk.start + sample.offset + 1)
        digest = self._digests[chunk.slot]
        return next_token(history, sample.uniform, self._info.vocab_size, digest)

    def _guess(self, plan: StepPlan, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """What a drafter that is mostly right says follows each chunk's new tokens."""
        guesses = np.zeros((len(plan.chunks), plan.program.draft), np.int32)
        for i, chunk in enumerate(plan.chunks if plan.program.draft else ()):
            rows = [row for row, sample in enumerate(plan.samples) if sample.chunk == i]
            if not rows or plan.samples[rows[0]].target_id >= 0:
                continue
            end = len(chunk.token_ids) - chunk.drafts
            stood = 0
            while stood < chunk.drafts and tokens[rows[stood]] == chunk.token_ids[end + stood]:
                stood += 1
            history = [*self._history(chunk, chunk.start + end + stood), tokens[rows[stood]]]
            draws = [*chunk.uniforms, *[0.0] * (stood + plan.program.draft)][stood:]
            for j in range(plan.program.draft):
                token = next_token(history, draws[j], self._info.vocab_size)
                token = token if self._random.random() < self.skill else 0
                guesses[i, j] = token
                history.append(token)
        return guesses

    def _result(self, tokens: list[int], drafts: np.ndarray[Any, np.dtype[np.int32]]) -> StepResult:
        count, top = len(tokens), self._info.logprobs_max
        ids = np.asarray(tokens, np.int32)
        return StepResult(
            token_ids=ids,
            logprobs=np.full(count, -1.0, np.float32),
            ranks=np.ones(count, np.int32),
            top_ids=np.repeat(ids[:, None], top, axis=1),
            top_logprobs=np.full((count, top), -1.0, np.float32),
            drafts=drafts,
        )
