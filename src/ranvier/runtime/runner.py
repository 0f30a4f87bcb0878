"""DeviceRunner: a loaded artifact that executes plans. Never traces, never compiles.

Per step: one packed host buffer in, one launch, one copy out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import DeviceError, StateLost
from ranvier.core.layout import FLOAT_FIELDS, OUTPUT_HEAD, SEEN_BIT, MetaLayout
from ranvier.core.media import ImageItem
from ranvier.core.program import ProgramShape
from ranvier.core.step import LogitEdits, RunnerInfo, Sample, StepPlan, StepResult
from ranvier.runtime.adapters import AdapterSlots
from ranvier.runtime.compat import LoadedProgram
from ranvier.runtime.encoder import PictureEncoder
from ranvier.runtime.media_fields import pack_media
from ranvier.runtime.mesh import RankMesh, mesh_of

__all__ = ["DeviceRunner"]

SAMPLE_FIELDS = ("top_k", "target_ids", "temperature", "top_p", "min_p", "uniform")


class _Buffers:
    """Host and resident buffers of one program."""

    def __init__(self, shape: ProgramShape, info: RunnerInfo, mesh: RankMesh) -> None:
        layout = shape.layout(info.block_tokens, info.model_len_max, info.vision)
        self.layout = layout
        rows = layout.samples or layout.rows
        self.edits_shape = (rows, info.edits_max, 3)
        self.allowed_shape = (rows, -(-info.vocab_size // 32))
        self.no_edits = mesh.same(np.zeros(self.edits_shape, np.int32))
        self.no_mask = mesh.same(np.zeros(self.allowed_shape, np.int32))


class DeviceRunner:
    """Runs the programs of one artifact, each on all devices of a mesh."""

    def __init__(
        self,
        info: RunnerInfo,
        programs: dict[ProgramShape, LoadedProgram],
        weights: dict[str, jax.Array],
        state: dict[str, jax.Array],
        release: Callable[[], None],
        encoder: PictureEncoder | None = None,
        slots: AdapterSlots | None = None,
    ) -> None:
        self._info = info
        self._programs = programs
        self._mesh = mesh_of(next(iter(state.values())))
        self._buffers = {shape: _Buffers(shape, info, self._mesh) for shape in programs}
        self._slots = slots
        self._fixed = weights
        self._gather()
        self._release = release
        self._names = sorted(state)
        self._state = [state[name] for name in self._names]
        self._encoder = encoder
        self._forms = [(array.shape, array.dtype, array.sharding) for array in self._state]
        self._epoch = 0

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def dispatch(self, plan: StepPlan) -> object:
        """Launch one step. Raises DeviceError; StateLost when the state went with it."""
        buffers = self._buffers[plan.program]
        meta = self._mesh.same(_pack(plan, buffers.layout))
        edits, allowed = self._edits(plan, buffers)
        # Flat order of (weights, state, inputs): each dict's keys sorted.
        arguments = [*self._weights, *self._state, allowed, edits, meta]
        try:
            *self._state, out = self._mesh.run(self._programs[plan.program], arguments)
        except RuntimeError as error:
            text = f"Program {plan.program.name} failed: {error}"
            if any(array.is_deleted() for array in self._state):
                self._renew()
                raise StateLost(text) from error
            raise DeviceError(text) from error
        return out, plan, self._epoch

    def collect(self, handle: object) -> StepResult:
        """Wait for a step and read its output. Raises DeviceError; StateLost as dispatch does."""
        assert isinstance(handle, tuple)
        out, plan, epoch = handle
        try:
            whole: NDArray[np.int32] = np.asarray(out)
        except RuntimeError as error:
            text = f"A step failed: {error}"
            if epoch != self._epoch:  # it was launched on a state that is known to be lost
                raise DeviceError(text) from error
            self._renew()
            raise StateLost(text) from error
        table, top = whole[: len(plan.samples)], self._info.logprobs_max
        floats = table.view(np.float32)
        return StepResult(
            token_ids=table[:, 0],
            ranks=table[:, 1],
            logprobs=floats[:, 2],
            top_ids=table[:, OUTPUT_HEAD : OUTPUT_HEAD + top],
            top_logprobs=floats[:, OUTPUT_HEAD + top : OUTPUT_HEAD + 2 * top],
            drafts=whole[: len(plan.chunks), OUTPUT_HEAD + 2 * top :],
        )

    def encode(self, image: ImageItem, rows: list[int]) -> None:
        """Put a picture's features into rows. Raises DeviceError."""
        if self._encoder is None:
            raise DeviceError(f"This model takes no pictures; one of shape {image.shape} came.")
        encoder = self._encoder
        self._encode(lambda state: encoder.run(image, rows, state))

    def _encode(self, launch: Callable[[list[jax.Array]], list[jax.Array]]) -> None:
        """Launch on the encoder's part of the state. Raises DeviceError, or StateLost with it."""
        assert self._encoder is not None
        places = [self._names.index(name) for name in self._encoder.state_names]
        try:
            results = launch([self._state[at] for at in places])
        except RuntimeError as error:
            text = f"Encoding a picture failed: {error}"
            if any(array.is_deleted() for array in self._state):
                self._renew()
                raise StateLost(text) from error
            raise DeviceError(text) from error
        for at, array in zip(places, results, strict=True):
            self._state[at] = array

    def place_adapter(self, slot: int, adapter: AdapterWeights | None) -> Iterator[None]:
        """Move an adapter into a slot, a piece a `next`. Raises DeviceError, StateLost."""
        if self._slots is None or not 0 < slot <= self._info.adapter_slots:
            raise DeviceError(f"This artifact has no slot {slot} for adapters.")
        try:
            for _ in self._slots.place(slot, adapter):
                self._gather()
                yield
        finally:
            self._gather()

    def _gather(self) -> None:
        """The arguments of a step that are not its state: weights and adapters, by name."""
        arrays = self._fixed | (self._slots.arrays if self._slots else {})
        self._weights = [arrays[name] for name in sorted(arrays)]

    def warm(self) -> None:
        """Run every program once on nothing."""
        for shape in self._programs:
            self.collect(self.dispatch(StepPlan(shape, [], [])))
        if self._encoder is not None:
            self._encode(self._encoder.warm)
        if self._slots is not None:
            self._slots.warm()
            self._gather()

    def close(self) -> None:
        """Drop the device's memory and let go of the artifact."""
        self._release()
        self._weights, self._state, self._programs = [], [], {}
        self._fixed, self._slots = {}, None

    def _renew(self) -> None:
        """Zeros instead of a state that a failed step has consumed or left unreadable."""
        self._epoch += 1
        self._state = [jnp.zeros(shape, kind, device=at) for shape, kind, at in self._forms]

    def _edits(self, plan: StepPlan, buffers: _Buffers) -> tuple[Any, Any]:
        if not any(sample.edits for sample in plan.samples):
            return buffers.no_edits, buffers.no_mask
        edits = np.zeros(buffers.edits_shape, np.int32)
        allowed = np.zeros(buffers.allowed_shape, np.int32)
        for row, sample in enumerate(plan.samples):
            if sample.edits is not None:
                _fill_edits(edits[row], allowed[row], sample.edits)
        return self._mesh.same(edits), self._mesh.same(allowed)


def _fill_edits(entries: NDArray[np.int32], allowed: NDArray[np.int32], edits: LogitEdits) -> None:
    count = len(edits.token_ids)
    entries[:count, 0] = edits.token_ids
    entries[:count, 1] = edits.counts | (edits.seen.astype(np.int32) << SEEN_BIT)
    entries[:count, 2] = edits.bias.view(np.int32)
    if edits.allowed is not None:
        allowed[: len(edits.allowed)] = edits.allowed.view(np.int32)


def _pack(plan: StepPlan, layout: MetaLayout) -> NDArray[np.int32]:
    """Fill the packed buffer of one step; padding is 0 but for token_source (-1)."""
    meta = np.zeros(layout.size, np.int32)
    at = layout.slices
    meta[at["token_source"]] = -1
    tables = meta[at["block_tables"]].reshape(layout.rows, layout.blocks)
    ids, positions = meta[at["token_ids"]], meta[at["positions"]]
    owners, starts = meta[at["token_seq"]], meta[at["query_starts"]]
    done = 0
    for i, chunk in enumerate(plan.chunks):
        count = len(chunk.token_ids)
        if layout.family == "decode":
            # Rows are equally long here: those with fewer drafts are filled up.
            count = layout.tokens // layout.rows
        stop = done + count
        ids[done : done + len(chunk.token_ids)] = chunk.token_ids
        positions[done:stop] = range(chunk.start, chunk.start + count)
        owners[done:stop] = i
        blocks = chunk.block_ids[: layout.blocks]
        tables[i, : len(blocks)] = blocks
        meta[at["slots"].start + i] = chunk.slot
        meta[at["context_lens"].start + i] = chunk.start + count
        starts[i] = done
        if chunk.from_previous >= 0:
            meta[at["token_source"].start + done] = chunk.from_previous
        done = stop
    starts[len(plan.chunks) :] = done
    meta[0:3] = (done, len(plan.chunks), len(plan.samples))
    if layout.vision is not None:
        pack_media(meta, plan.chunks, layout)
    if plan.samples:
        _pack_samples(meta, plan.samples, starts, layout)
    if layout.lookahead:
        _pack_drafts(meta, plan, starts, layout)
    return meta


def _pack_drafts(
    meta: NDArray[np.int32], plan: StepPlan, starts: NDArray[np.int32], layout: MetaLayout
) -> None:
    """What a drafter needs of each sequence."""
    at = layout.slices
    uniforms = meta[at["draft_uniform"]].view(np.float32).reshape(layout.rows, -1)
    rows = {sample.chunk: row for row, sample in reversed(list(enumerate(plan.samples)))}
    for i, chunk in enumerate(plan.chunks):
        meta[at["last_tokens"].start + i] = starts[i] + len(chunk.token_ids) - 1 - chunk.drafts
        meta[at["draft_rows"].start + i] = rows.get(i, 0)
        meta[at["draft_counts"].start + i] = chunk.drafts
        meta[at["next_ids"].start + i] = chunk.next_id
        draws = chunk.uniforms[: uniforms.shape[1]]
        uniforms[i, : len(draws)] = draws


def _pack_samples(
    meta: NDArray[np.int32],
    samples: list[Sample],
    starts: NDArray[np.int32],
    layout: MetaLayout,
) -> None:
    def put(name: str, values: list[Any]) -> None:
        field = meta[layout.slices[name]]
        if name in FLOAT_FIELDS:
            field = field.view(np.float32)
        field[: len(values)] = values

    put("sample_tokens", [starts[s.chunk] + s.offset for s in samples])
    put("logprob_counts", [s.logprobs for s in samples])
    for name in ("top_k", "temperature", "top_p", "min_p", "uniform"):
        put(name, [getattr(s, name) for s in samples])
    put("target_ids", [s.target_id for s in samples])
    edits = [s.edits for s in samples]
    put("repetition", [e.repetition if e else 1.0 for e in edits])
    if any(edits):
        put("frequency", [e.frequency if e else 0.0 for e in edits])
        put("presence", [e.presence if e else 0.0 for e in edits])
        put("edit_counts", [len(e.token_ids) if e else 0 for e in edits])
        put("flags", [int(e is not None and e.allowed is not None) for e in edits])
