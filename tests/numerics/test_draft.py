"""A step with a drafter: what is verified, what is drafted, and that no guess changes a token.

The drafter is the target itself, so that its greedy guesses must be what the target says next.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ranvier.build.drafting import pack_draft
from ranvier.build.pack import Form, pack_weights
from ranvier.build.programs import Sizes, programs
from ranvier.core.buckets import BucketSet
from ranvier.core.random import uniform
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan
from ranvier.models.draft import DraftSpec
from ranvier.models.table import resolve
from ranvier.native import library
from ranvier.runtime.runner import DeviceRunner
from ranvier.weights.checkpoint import open_checkpoint
from tests.parity.test_parity import GOLDENS

K = 3
PROMPT = [5, 9, 77, 31, 8, 101, 43]
LENGTH = 64
RAGGED = BucketSet(tokens=(1, 8, 32), drafts=(K,), lookahead=K, has_drafter=True)
UNRAGGED = BucketSet(
    prefill_tokens=(16,), decode_rows=(2,), contexts=(32, 64), drafts=(K,), lookahead=K,
    has_drafter=True,
)  # fmt: skip
KINDS = {"cpu": RAGGED, "reference": RAGGED, "unragged": UNRAGGED}


def make_runner(kind, family="llama", open_draft=None):
    """A runner with the target as its own draft, or with what open_draft(checkpoint, spec) is."""
    kernels = "cpu" if kind == "cpu" else "reference"
    if kernels == "cpu" and not library.register():
        pytest.skip("the kernels are not built")
    checkpoint = open_checkpoint(GOLDENS / family)
    spec = resolve(checkpoint.config)
    drafts_from, draft = checkpoint, DraftSpec("draft_model", spec)
    if open_draft is not None:
        drafts_from, draft = open_draft(checkpoint, spec)
    sizes = Sizes(
        dtype="float32", kernels=kernels, max_model_len=LENGTH, max_num_seqs=2, block_tokens=32,
        block_count=9, kv_layout="block", buckets=KINDS[kind], logprobs_max=2, edits_max=8,
        draft=draft,
    )  # fmt: skip
    packed = dict(pack_weights(checkpoint, spec, "float32", kernels))
    packed |= {n: own for n, (own,) in pack_draft(drafts_from, draft, Form("float32", kernels))}
    table = programs(spec, sizes)
    state = {name: jnp.zeros(s.shape, s.dtype) for name, s in table[0].arguments[1].items()}
    info = RunnerInfo(
        buckets=sizes.buckets, rows_max=2, block_tokens=32, block_count=9, model_len_max=LENGTH,
        vocab_size=spec.vocab_size, logprobs_max=2, edits_max=8,
    )  # fmt: skip
    weights = {name: jnp.asarray(array) for name, array in packed.items()}
    loaded = {program.shape: _flat(program, sorted(packed), sorted(state)) for program in table}
    return DeviceRunner(info, loaded, weights, state, lambda: None)


def _flat(program, names, states):
    """The program as the runtime calls it: flat arrays in, flat arrays out."""
    jitted = jax.jit(program.function, donate_argnums=1)

    def call(arguments):
        weights = dict(zip(names, arguments, strict=False))
        state = dict(zip(states, arguments[len(names) :], strict=False))
        inputs = dict(zip(("allowed", "edits", "meta"), arguments[-3:], strict=True))
        state, out = jitted(weights, state, inputs)
        return [*(state[name] for name in states), out]

    return call


@pytest.fixture(scope="module", params=KINDS)
def runner(request):
    return make_runner(request.param)


class Row:
    """One sequence, driven by hand: its tokens, its drafts, the drafts that stood."""

    def __init__(self, runner, blocks, temperature=0.0, seed=1):
        self.runner, self.blocks = runner, blocks
        self.temperature, self.seed = temperature, seed
        self.tokens, self.drafts, self.accepted = list(PROMPT), [], []
        self.absorbed = 0

    def chunk(self, start, drafts):
        ids = [*self.tokens[start:], *drafts]
        places = range(len(self.tokens) + 1, len(self.tokens) + 1 + 2 * K)
        draws = [uniform(self.seed, p) for p in places] if self.temperature else []
        return Chunk(start, ids, self.blocks, drafts=len(drafts), uniforms=draws)

    def samples(self, chunk, start, count):
        offset, place = len(self.tokens) - start - 1, len(self.tokens)
        return [
            Sample(chunk, offset + i, self.temperature, uniform=uniform(self.seed, place + i))
            for i in range(count + 1)
        ]

    def take(self, sampled, drafts):
        stood = 0
        while stood < len(self.drafts) and sampled[stood] == self.drafts[stood]:
            stood += 1
        self.accepted.append((stood, len(self.drafts)))
        self.tokens += [int(t) for t in sampled[: stood + 1]]
        self.drafts = [int(t) for t in drafts]


def step(rows, k, start=None):
    """One step of every row, its drafts verified; `k` more are drafted."""
    info, chunks, samples, firsts = rows[0].runner.info, [], [], []
    for i, row in enumerate(rows):
        first = len(row.tokens) - 1 if start is None else start
        # What the drafter missed it takes in now, the target once more.
        first = min(first, row.absorbed) if k and info.is_ragged else first
        row.drafts = row.drafts if k or info.is_ragged else []
        firsts.append(len(samples))
        chunks.append(row.chunk(first, row.drafts))
        samples += row.samples(i, first, len(row.drafts))
    tokens, ends = (
        sum(len(c.token_ids) for c in chunks),
        [c.start + len(c.token_ids) for c in chunks],
    )
    if info.is_ragged:
        program = info.step(tokens, k if start is None else K)
    elif start is None:
        program = info.decode(len(rows), max(ends), k)
    else:
        program = info.prefill(tokens, max(ends))
    runner = rows[0].runner
    result = runner.collect(runner.dispatch(StepPlan(program, chunks, samples)))
    for i, (row, at) in enumerate(zip(rows, firsts, strict=True)):
        sampled = result.token_ids[at : at + 1 + len(row.drafts)]
        row.take(sampled, result.drafts[i] if program.draft else [])
        row.absorbed = len(row.tokens) - 1 if program.lookahead else row.absorbed


def plain(runner, count, **sampling):
    row = Row(runner, [1, 2], **sampling)
    step([row], 0, start=0)
    while len(row.tokens) < len(PROMPT) + count:
        step([row], 0)
    return row.tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.7, "seed": 9}])
def test_a_model_that_drafts_for_itself_is_always_right(runner, sampling):
    want = plain(runner, 24, **sampling)
    row = Row(runner, [3, 4], **sampling)
    step([row], 0 if not runner.info.is_ragged else K, start=0)
    while len(row.tokens) < len(want):
        step([row], K)
    assert row.tokens[: len(want)] == want
    assert all(stood == drafted for stood, drafted in row.accepted)
    assert (K, K) in row.accepted


def test_wrong_drafts_change_nothing_and_spoil_nothing(runner):
    want = plain(runner, 24)
    row, other = Row(runner, [3, 4]), Row(runner, [5, 6], temperature=1.0)
    step([row], 0, start=0)
    step([other], 0, start=0)
    for turn in range(20):
        if len(row.tokens) >= len(want):
            break
        if turn % 3 == 0 and row.drafts:
            row.drafts[turn % K] = (row.drafts[turn % K] + 1) % 160
        step([row, other], K if turn % 4 or not runner.info.is_ragged else 0)
    assert row.tokens[: len(want)] == want
    whole = [stood for stood, drafted in row.accepted if drafted]
    assert min(whole) < K and max(whole) == K, "the caches of the drafter lost a token"
