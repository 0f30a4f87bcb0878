"""Automatic bucket sets: what requests look like, what a step costs, and the best set for both.

Pure arithmetic on the host, without jax; the same inputs give the same set.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.build.choice import Choice, Lengths, choose_buckets, linear, log_normal
from ranvier.core.buckets import BucketLimits, BucketSet, prove_coverage
from ranvier.core.errors import ConfigError

__all__ = [
    "PROGRAMS_MAX", "Automatic", "StepCost", "Traffic", "automatic_tokens", "automatic_unragged",
    "read_trace",
]  # fmt: skip

PROGRAMS_MAX = 32
"""Default budget of programs of one artifact."""
PROGRAM_PRICE = 0.002
"""A program has to save this share of the cost of all steps to be worth compiling and loading."""
AXIS_MAX = 8
QUANTILES = 32
CONTEXTS_MAX = 256
ROW_COUNTS = 16
TOKEN_TILE = 16
CONTEXT_TILE = 128

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Lengths of prompts and of outputs, in tokens, taken as independent."""

    prompts: Lengths
    outputs: Lengths

    @classmethod
    def default(cls, limit: int) -> Traffic:
        """Log-normal with the means of vLLM's ShareGPT sample, 202 in and 179 out.

        The spread and a tail of two in a hundred that may be of any length are assumed.
        """
        return cls(log_normal(202, 1.2, limit), log_normal(179, 1.0, limit))


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a padded step costs, in passes over the weights. Source: rooflines of decode, prefill.

    `tokens` is where a step turns from reading weights to computing, `attention` the context at
    which prefill attention equals the linears, `cache` how many tokens of KV equal the weights in
    bytes. The defaults are an 8B model in bfloat16 on an accelerator of 230 FLOP per byte.
    """

    tokens: float = 230.0
    attention: float = 50_000.0
    cache: float = 120_000.0

    def prefill(self, tokens: Array, contexts: Array) -> Array:
        return np.asarray(np.maximum(1.0, tokens / self.tokens) * (1 + contexts / self.attention))

    def decode(self, rows: Array, contexts: Array) -> Array:
        return np.asarray(np.maximum(1.0, rows / self.tokens) + rows * contexts / self.cache)


@dataclass(frozen=True, slots=True)
class Automatic:
    """A chosen set; padding is the expected extra cost as a share: 0.2 is a fifth more."""

    buckets: BucketSet
    prefill_padding: float
    decode_padding: float

    @property
    def program_count(self) -> int:
        own = self.buckets
        return len(own.tokens) + len(own.prefill_programs) + len(own.decode_programs)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps that occur: size (tokens or rows), longest context, how often."""

    sizes: Array
    contexts: Array
    weights: Array

    def cost(self, sizes: Iterable[int], contexts: Iterable[int], cost: Any) -> float:
        """Expected cost with these buckets; a step takes the smallest that holds it."""
        ladder, lengths = np.asarray(list(sizes)), np.asarray(list(contexts))
        size = ladder[np.searchsorted(ladder, self.sizes)]
        context = lengths[np.searchsorted(lengths, self.contexts)]
        return float(np.dot(self.weights, cost(size, context)))

    def exact(self, cost: Any) -> float:
        return float(np.dot(self.weights, cost(self.sizes, self.contexts)))

    def marginal(self, values: Array) -> Lengths:
        found, at = np.unique(values, return_inverse=True)
        sums = np.bincount(at, self.weights)
        return Lengths(tuple(int(v) for v in found), tuple(sums.tolist()))


def automatic_unragged(
    limits: BucketLimits,
    traffic: Traffic | None = None,
    cost: StepCost | None = None,
    *,
    budget: int = PROGRAMS_MAX,
) -> Automatic:
    """The set of prefill and decode programs with the least expected cost within the budget.

    Each axis is chosen by dynamic programming for every count of sizes; the counts are then tried
    together on all steps. Raises ConfigError for a budget below 2.
    """
    if budget < 2:
        raise ConfigError(
            f"The program budget is {budget}; prefill and decode need one program each.",
            hint="Allow at least 2 programs.",
        )
    traffic, cost = traffic or Traffic.default(limits.max_model_len), cost or StepCost()
    prefill, decode = _prefill_steps(limits, traffic), _decode_steps(limits, traffic)
    tokens, rows, contexts = _axes(limits, prefill, decode)
    best: tuple[float, BucketSet] | None = None
    for context in contexts:
        chunks = [prefill.cost(t.sizes, context.sizes, cost.prefill) for t in tokens]
        steps = [decode.cost(r.sizes, context.sizes, cost.decode) for r in rows]
        for i, j in itertools.product(range(len(tokens)), range(len(rows))):
            found = BucketSet(
                prefill_tokens=tokens[i].sizes, decode_rows=rows[j].sizes, contexts=context.sizes
            )
            count = len(found.prefill_programs) + len(found.decode_programs)
            total = (chunks[i] + steps[j]) * (1 + PROGRAM_PRICE * count)
            if count <= budget and (best is None or total < best[0]):
                best = (total, found)
    assert best is not None, "one size on each axis is within every budget"
    return _report(best[1], limits, prefill, decode, cost)


def automatic_tokens(
    limits: BucketLimits, traffic: Traffic | None = None, *, budget: int = AXIS_MAX
) -> Automatic:
    """The ragged family's buckets of least expected padding, cost in proportion to tokens."""
    traffic = traffic or Traffic.default(limits.max_model_len)
    prefill, decode = _prefill_steps(limits, traffic), _decode_steps(limits, traffic)
    sizes = np.concatenate([prefill.sizes, decode.sizes])
    weights = np.concatenate([prefill.weights, decode.weights])
    steps = _Steps(sizes, sizes, weights)
    largest = max(limits.max_num_batched_tokens, limits.max_num_seqs * (1 + limits.lookahead))
    choice = choose_buckets(steps.marginal(sizes), linear, largest, budget)[-1]
    buckets = BucketSet(tokens=choice.sizes)
    prove_coverage(buckets, limits)
    pads = [_padding(s, choice.sizes, s.sizes.max()) for s in (prefill, decode)]
    return Automatic(buckets, pads[0], pads[1])


def read_trace(lines: Iterable[str]) -> Traffic:
    """Traffic from JSON lines {"prompt_tokens": n, "output_tokens": m}. Raises ConfigError."""
    prompts, outputs = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, output = record["prompt_tokens"], record["output_tokens"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"Trace line {number} is not usable: {error!r}.",
                hint='Each line is {"prompt_tokens": n, "output_tokens": m}.',
            ) from error
        if type(prompt) is not int or type(output) is not int or min(prompt, output) < 1:
            raise ConfigError(f"Trace line {number}: lengths must be integers of at least 1.")
        prompts.append(prompt)
        outputs.append(output)
    if not prompts:
        raise ConfigError("The trace holds no requests.")
    return Traffic(Lengths.of(prompts), Lengths.of(outputs))


def _axes(limits: BucketLimits, prefill: _Steps, decode: _Steps) -> list[list[Choice]]:
    contexts = _Steps(decode.sizes, decode.contexts, decode.weights)
    tile = max(CONTEXT_TILE, limits.block_tokens)
    tile += -tile % limits.block_tokens
    tokens_tile = min(TOKEN_TILE, limits.prefill_max)
    return [
        choose_buckets(
            prefill.marginal(prefill.sizes), linear, limits.prefill_max, AXIS_MAX, tile=tokens_tile
        ),
        choose_buckets(decode.marginal(decode.sizes), linear, limits.max_num_seqs, AXIS_MAX),
        choose_buckets(
            contexts.marginal(contexts.contexts), linear, limits.context_max, AXIS_MAX, tile=tile
        ),
    ]


def _prefill_steps(limits: BucketLimits, traffic: Traffic) -> _Steps:
    """Chunks of each prompt: whole ones of the largest size, then the rest."""
    rows = []
    room, chunk = limits.max_model_len, limits.prefill_max
    for length, weight in zip(traffic.prompts.values, traffic.prompts.weights, strict=True):
        length = min(length, room)
        rows += [
            (min(chunk, length - start), min(start + chunk, length), weight)
            for start in range(0, length, chunk)
        ]
    sizes, contexts, weights = np.asarray(rows, float).T
    return _Steps(sizes, contexts, weights / sum(traffic.prompts.weights))


def _decode_steps(limits: BucketLimits, traffic: Traffic) -> _Steps:
    """Steps per request: rows uniform, the context that of the longest of the rows."""
    prompts, outputs = _quantiles(traffic.prompts), _quantiles(traffic.outputs)
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    grid = prompts[:, None, None] + np.ceil(outputs[None, :, None] * places)
    grid = np.minimum(grid, limits.max_model_len)
    values, at = np.unique(grid, return_inverse=True)
    # A long output decodes more often at its contexts.
    often = np.broadcast_to(outputs[None, :, None], grid.shape).reshape(-1)
    below = np.cumsum(np.bincount(at.reshape(-1), often)) / often.sum()
    values, below = _thin(values, below)
    counts = _row_counts(limits.max_num_seqs)
    parts = [np.diff(np.concatenate([[0.0], below**rows])) / rows for rows in counts]
    sizes = np.repeat(np.asarray(counts, float), len(values))
    weights = np.concatenate(parts) * outputs.mean() / len(counts)
    return _Steps(sizes, np.tile(values, len(counts)), weights)


def _quantiles(lengths: Lengths) -> Array:
    shares = np.cumsum(lengths.weights) / sum(lengths.weights)
    at = np.searchsorted(shares, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return np.asarray(lengths.values, float)[np.minimum(at, len(lengths.values) - 1)]


def _thin(values: Array, below: Array) -> tuple[Array, Array]:
    """At most CONTEXTS_MAX points of a distribution; the last one stays."""
    at = np.unique(np.linspace(0, len(values) - 1, CONTEXTS_MAX).round().astype(int))
    return values[at], below[at]


def _row_counts(largest: int) -> list[int]:
    at = np.unique(np.linspace(1, largest, min(largest, ROW_COUNTS)).round().astype(int))
    return [int(count) for count in at]


def _report(
    buckets: BucketSet, limits: BucketLimits, prefill: _Steps, decode: _Steps, cost: StepCost
) -> Automatic:
    prove_coverage(buckets, limits)
    paid = prefill.cost(buckets.prefill_tokens, buckets.contexts, cost.prefill)
    spent = decode.cost(buckets.decode_rows, buckets.contexts, cost.decode)
    return Automatic(
        buckets, paid / prefill.exact(cost.prefill) - 1, spent / decode.exact(cost.decode) - 1
    )


def _padding(steps: _Steps, sizes: tuple[int, ...], largest: float) -> float:
    def tokens(size: Array, _: Array) -> Array:
        return size

    flat = _Steps(steps.sizes, np.zeros_like(steps.sizes), steps.weights)
    return flat.cost(sizes, [int(largest)], tokens) / flat.exact(tokens) - 1
