"""The training loop: batches in an order that the seed fixes, checkpoints, measures, progress.

A run that goes on from its checkpoint ends with the same weights as one that was never cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from ranvier.core.errors import ConfigError
from ranvier.train.adam import Adam, Moments
from ranvier.train.loss import Batch, Frozen, Objective, Report
from ranvier.train.rows import Rows
from ranvier.weights.safetensors import SafetensorsFile
from ranvier.weights.safetensors_write import save_safetensors

__all__ = ["Acceptance", "Course", "Training", "Turn"]

STATE, COURSE = "state.safetensors", "course.json"
Params = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """How long and how fast; `held_out` rows at the end are measured on, never learnt.

    The last `unroll_epochs` unroll all draft steps; those before them the first alone, which costs
    half as much and teaches most of what there is to learn.
    """

    epochs: int
    unroll_epochs: int
    batch_rows: int
    rate: float
    seed: int
    held_out: int
    checkpoint_steps: int = 200

    def steps_per_epoch(self, rows: int) -> int:
        return (rows - self.held_out) // self.batch_rows

    def steps(self, rows: int) -> int:
        return self.epochs * self.steps_per_epoch(rows)


@dataclass(frozen=True)
class Acceptance:
    """By draft position: the share of chains that hold up to it; and tokens a target's step."""

    by_position: tuple[float, ...]
    loss: float

    @property
    def length(self) -> float:
        return 1 + sum(self.by_position)


@dataclass(frozen=True)
class Turn:
    """What the caller shows after a step; `held_out` where an epoch ends."""

    step: int
    steps: int
    epoch: int
    measured: Acceptance
    held_out: Acceptance | None


class Training:
    """One run in `folder`, which holds its checkpoint."""

    def __init__(
        self, folder: Path, rows: Rows, objective: Objective, frozen: Frozen, course: Course
    ) -> None:
        if course.steps_per_epoch(len(rows)) < 1:
            raise ConfigError(
                f"{len(rows)} rows less {course.held_out} held out do not fill one batch of "
                f"{course.batch_rows}.",
                hint="Give more data, or a smaller --batch-rows.",
            )
        self.folder, self.rows, self.course = folder, rows, course
        self.steps = course.steps(len(rows))
        self._frozen = jax.device_put(frozen)
        self._adam = Adam(course.rate, self.steps)
        first = whole = self._update(objective)
        if objective.unroll.steps > 1:
            first = self._update(replace(objective, unroll=replace(objective.unroll, steps=1)))
        self._updates = first, whole
        self._measure = jax.jit(lambda params, frozen, batch: objective(params, frozen, batch)[1])

    def run(
        self, start: Params, head_of: NDArray[np.int32], show: Callable[[Turn], object]
    ) -> Params:
        """Train from the checkpoint, or from `start`; the params at the end."""
        first, params, moments = self._load(start)
        course, per_epoch = self.course, self.course.steps_per_epoch(len(self.rows))
        for step in range(first, self.steps):
            batch = self.rows.batch(self._picks(step), head_of)
            rate = np.float32(self._adam.rate_at(step))
            epoch = step // per_epoch
            update = self._updates[epoch >= course.epochs - course.unroll_epochs]
            params, moments, report = update(
                params, moments, self._frozen, batch, np.int32(step), rate
            )
            done, held_out = step + 1, None
            if done % course.checkpoint_steps == 0 or done == self.steps:
                self._save(done, params, moments)
            if done % per_epoch == 0 and course.held_out:
                held_out = self.measure(params, head_of)
            show(Turn(done, self.steps, epoch + 1, _acceptance([report]), held_out))
        return params

    def measure(self, params: Params, head_of: NDArray[np.int32]) -> Acceptance:
        """On the rows held out, as teacher-forced chains."""
        count, size = len(self.rows), self.course.batch_rows
        reports = []
        for start in range(count - self.course.held_out, count, size):
            batch = self.rows.batch(range(start, min(start + size, count)), head_of)
            reports.append(self._measure(params, self._frozen, batch))
        return _acceptance(reports)

    def _update(self, objective: Objective) -> Any:
        """The compiled step of an objective: params and moments in, their successors out."""

        def step(
            params: Params, moments: Moments, frozen: Frozen, batch: Batch, at: Array, rate: Array
        ) -> tuple[Params, Moments, Report]:
            grads, report = jax.grad(objective, has_aux=True)(params, frozen, batch)
            params, moments = self._adam.update(params, moments, grads, at, rate)
            return params, moments, report

        return jax.jit(step, donate_argnums=(0, 1))

    def _picks(self, step: int) -> Sequence[int]:
        """The rows of a step: each epoch goes through all of them in an order of its own."""
        per_epoch = self.course.steps_per_epoch(len(self.rows))
        epoch, index = divmod(step, per_epoch)
        rng = np.random.default_rng((self.course.seed, epoch))
        order = rng.permutation(len(self.rows) - self.course.held_out)
        size = self.course.batch_rows
        return [int(i) for i in order[index * size : (index + 1) * size]]

    def _load(self, start: Params) -> tuple[int, Params, Moments]:
        """(steps done, params, moments). Raises ConfigError where the course is another."""
        course = self.folder / COURSE
        own = {**asdict(self.course), "rows": len(self.rows)}
        if not (self.folder / STATE).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            course.write_text(json.dumps(own))
            params = jax.tree.map(jnp.asarray, start)
            return 0, params, self._adam.start(params)
        before = json.loads(course.read_text())
        if before != own:
            changed = [f"{k}={before.get(k)}" for k in own if before.get(k) != own[k]]
            raise ConfigError(
                f"{self.folder}: holds a run with {', '.join(changed)}.",
                hint="Give the same options to go on, or another --output.",
            )
        file = SafetensorsFile(self.folder / STATE)

        def part(prefix: str) -> Params:
            return {name: jnp.asarray(np.array(file.read(f"{prefix}.{name}"))) for name in start}

        moments = Moments(part("first"), part("second"))
        return int(file.read("step")[0]), part("param"), moments

    def _save(self, step: int, params: Params, moments: Moments) -> None:
        tensors: dict[str, NDArray[Any]] = {"step": np.asarray([step], np.int32)}
        named = (("param", params), ("first", moments.first), ("second", moments.second))
        for prefix, tree in named:
            tensors |= {f"{prefix}.{name}": np.asarray(value) for name, value in tree.items()}
        part = self.folder / f".{STATE}"
        save_safetensors(part, tensors)
        os.replace(part, self.folder / STATE)


def _acceptance(reports: Sequence[Report]) -> Acceptance:
    begun = max(sum(int(r.begun) for r in reports), 1)
    held = np.sum([np.asarray(r.held, np.float64) for r in reports], axis=0)
    loss = float(np.mean([float(r.loss) for r in reports]))
    return Acceptance(tuple(float(h) / begun for h in held), loss)
