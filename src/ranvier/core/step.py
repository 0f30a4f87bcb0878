"""What the engine and a device say to each other: StepPlan in, StepResult out.

Knows nothing of jax or of scheduling policy. A plan is complete: a runner needs no other state of
the engine to execute it. Block 0 is the garbage block: padding is written there and no sequence
owns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights
from ranvier.core.buckets import BucketSet
from ranvier.core.media import ImageItem, VisionInfo
from ranvier.core.program import (
    KvLayout,
    ProgramShape,
    decode_shape,
    prefill_shape,
    program_shapes,
    step_shape,
)

__all__ = [
    "Chunk",
    "ChunkMedia",
    "Int32Array",
    "LogitEdits",
    "Runner",
    "RunnerInfo",
    "Sample",
    "StepPlan",
    "StepResult",
]

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence in one step.

    `token_ids` are consecutive tokens from position `start`. A decode row whose token is still on
    the device has `from_previous` >= 0: the index of the sample in the previous step's plan; its
    `token_ids` then holds one placeholder 0. `block_ids` covers positions 0 .. start+len-1, or
    more. `slot` is the place of the sequence's adapter on the device, 1 .. adapter_slots; 0: the
    base model.

    The last `drafts` tokens are guesses: the sample row of the token before verifies each, and the
    sequence has 1 + drafts rows in order. For a drafter on the device: `next_id` follows the chunk
    where that is known; `uniforms` drive its draws, from the second position after the last known
    token on.
    """

    start: int
    token_ids: list[int]
    block_ids: list[int]
    from_previous: int = -1
    slot: int = 0
    media: ChunkMedia | None = None
    drafts: int = 0
    next_id: int = 0
    uniforms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChunkMedia:
    """What a chunk of a vision model takes of pictures; lists have an entry a token, or none.

    `feature_rows`: the feature that stands for the token, -1: its embedding. `rope`: (frame, row,
    column) for VisionInfo.has_rope_axes; empty: the token's position on each axis. `sees_to`:
    the last position that the token attends to, for VisionInfo.is_whole; empty: its own.
    VisionInfo.is_cross: `cross_blocks` are the blocks of the sequence's tiles in order, and
    `cross_spans` the (first, behind the last) of them that the token attends to, (0, 0) for none.
    """

    feature_rows: list[int] = field(default_factory=list)
    rope: list[tuple[int, int, int]] = field(default_factory=list)
    sees_to: list[int] = field(default_factory=list)
    cross_blocks: list[int] = field(default_factory=list)
    cross_spans: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Sparse changes of one row's logits, applied in this order before temperature.

    For entry i: if seen[i], repetition penalty; then minus frequency*count + presence*(count>0);
    then plus bias. `allowed` is a bitmask over the vocabulary (uint32 words, bit v%32 of word
    v//32) or None; a token outside it is never drawn.
    """

    token_ids: Int32Array
    counts: Int32Array
    seen: NDArray[np.bool_]
    bias: Float32Array
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    allowed: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the logits: which token of the plan it follows and what to do with it.

    `chunk` and `offset` name the token whose hidden state feeds the head. temperature 0 is greedy.
    `target_id` >= 0 scores that token instead of drawing one (prompt logprobs). `logprobs` is how
    many top entries to return, -1 none; log-probabilities are of the raw logits.
    `uniform` in [0, 1) drives the draw: the device has no generator of its own.
    """

    chunk: int
    offset: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    logprobs: int = -1
    target_id: int = -1
    edits: LogitEdits | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One dispatch of one program."""

    program: ProgramShape
    chunks: list[Chunk]
    samples: list[Sample]

    @property
    def token_count(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results in the order of plan.samples.

    Shapes: token_ids, ranks [n] int32; logprobs [n] f32, of the drawn or target token;
    top_ids [n, k] int32 and top_logprobs [n, k] f32, descending, k = RunnerInfo.logprobs_max.
    Log-probability fields of rows that asked for none are unspecified. drafts [chunks, K]: what
    the device guesses to follow each sequence's new tokens, K = the program's `draft`.
    """

    token_ids: Int32Array
    logprobs: Float32Array
    ranks: Int32Array
    top_ids: Int32Array
    top_logprobs: Float32Array
    drafts: Int32Array | None = None


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """The static limits of a loaded artifact; all scheduling happens within them."""

    buckets: BucketSet
    rows_max: int
    block_tokens: int
    block_count: int
    model_len_max: int
    vocab_size: int
    logprobs_max: int
    edits_max: int
    kv_layout: KvLayout = "block"
    adapter_slots: int = 0
    adapter_rank_max: int = 0
    vision: VisionInfo | None = None
    """Of a model that sees pictures."""

    @property
    def is_ragged(self) -> bool:
        """Whether one program takes any mix of prefill and decode."""
        return bool(self.buckets.tokens)

    @property
    def programs(self) -> tuple[ProgramShape, ...]:
        return program_shapes(self.buckets, self.rows_max)

    @property
    def tokens_max(self) -> int:
        """Tokens of the largest step."""
        return (self.buckets.tokens or self.buckets.prefill_tokens)[-1]

    @property
    def blocks_per_sequence_max(self) -> int:
        return -(-self.model_len_max // self.block_tokens)

    def step(self, tokens: int, draft: int = 0) -> ProgramShape:
        """The program of a ragged step; a large one takes tokens in and drafts none."""
        return step_shape(self.buckets, self.rows_max, self.buckets.step(tokens), draft)

    def prefill(self, tokens: int, context: int) -> ProgramShape:
        """The program of one sequence's chunk that ends at `context`."""
        return prefill_shape(self.buckets, *self.buckets.prefill(tokens, context))

    def decode(self, rows: int, context: int, draft: int = 0) -> ProgramShape:
        """The program of one token and `draft` drafts of `rows` sequences, up to `context`."""
        return decode_shape(self.buckets, *self.buckets.decode(rows, context), draft)


class Runner(Protocol):
    """A device that executes plans. `dispatch` does not block where the device is asynchronous."""

    @property
    def info(self) -> RunnerInfo: ...

    def dispatch(self, plan: StepPlan) -> object:
        """Launch one step and return its handle. Raises DeviceError."""
        ...

    def collect(self, handle: object) -> StepResult:
        """Wait for a step and copy its result to the host. Raises DeviceError."""
        ...

    def encode(self, image: ImageItem, rows: list[int]) -> None:
        """Put a picture's features into `rows`, in order; with info.vision.is_cross: its tiles.

        Steps dispatched later see them. Raises DeviceError.
        """
        ...

    def place_adapter(self, slot: int, adapter: AdapterWeights | None) -> Iterator[None]:
        """Move an adapter into a slot, or with None empty the slot, one bounded piece a `next`.

        Every step that names the slot must be collected before the first `next`, and until the
        iterator is exhausted no plan may name it. Other slots are served between the pieces.
        Raises DeviceError; StateLost when all slots are empty now.
        """
        ...

    def close(self) -> None: ...
