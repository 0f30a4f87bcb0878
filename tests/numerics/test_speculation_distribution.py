"""The distribution of tokens with guesses is the target's own: 10^5 draws, chi-square.

The target and the drafter are tables of logits by the last token, the sampling is that of the
programs. The drafter draws with the very uniform number of its position, and is often wrong.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.core.layout import FLOAT_FIELDS, MetaLayout
from ranvier.core.random import uniforms
from ranvier.native import library
from ranvier.nn.kernels.table import select

VOCAB, K, DRAWS, TOKENS = 12, 3, 100_000, 4
P_MIN = 0.01
SAMPLING = {
    "plain": {},
    "hot": {"temperature": 1.6},
    "narrow": {"temperature": 1.3, "top_k": 8, "top_p": 0.95, "min_p": 0.02},
}
RNG = np.random.default_rng(3)
TARGET = RNG.normal(0, 1.5, (VOCAB, VOCAB)).astype(np.float32)
DRAFTER = TARGET + RNG.normal(0, 0.7, (VOCAB, VOCAB)).astype(np.float32)


class Sampler:
    """The programs' sampling kernel on tables."""

    def __init__(self, kernels, sampling):
        self.layout = layout = MetaLayout(DRAWS, DRAWS, 1)
        edits, allowed = jnp.zeros((DRAWS, 1, 3), jnp.int32), jnp.zeros((DRAWS, 1), jnp.int32)

        def run(table, last, meta):
            return select(kernels).sample(table[last], meta, layout, edits, allowed, top_count=0)

        self.run = jax.jit(run)
        self.fields = {"temperature": 1.0, "top_p": 1.0, "repetition": 1.0, **sampling}

    def __call__(self, table, last, draws):
        meta, at = np.zeros(self.layout.size, np.int32), self.layout.slices
        meta[:3], meta[at["target_ids"]] = DRAWS, -1
        for name, value in {**self.fields, "uniform": draws}.items():
            field = meta[at[name]]
            field = field.view(np.float32) if name in FLOAT_FIELDS else field
            field[:] = value
        return np.asarray(self.run(jnp.asarray(table), jnp.asarray(last), jnp.asarray(meta)))[:, 0]


def guess_and_verify(sample, draws):
    """The first tokens of DRAWS sequences from token 0 on, K guesses a step, and how many stood."""
    tokens = np.zeros((DRAWS, 1 + TOKENS + K + 1), np.int32)
    count, rows, stood = np.ones(DRAWS, np.int64), np.arange(DRAWS), 0
    while count.min() <= TOKENS:
        count = np.minimum(count, TOKENS + 1)
        last = tokens[rows, count - 1]
        drafts = [last]
        for j in range(K):
            drafts.append(sample(DRAFTER, drafts[-1], draws[rows, count + j]))
        is_good = np.ones(DRAWS, bool)
        accepted = np.zeros(DRAWS, np.int64)
        for j in range(K + 1):
            said = sample(TARGET, drafts[j], draws[rows, count + j])
            tokens[rows[is_good], count[is_good] + j] = said[is_good]
            if j < K:
                is_good &= said == drafts[j + 1]
                accepted += is_good
        stood += int(accepted.sum())
        count = count + 1 + accepted
    return tokens[:, 1 : TOKENS + 1], stood


def probabilities(sampling):
    """The target's transition table after temperature, min-p, top-k and top-p, in f64."""
    scaled = TARGET.astype(np.float64) / sampling.get("temperature", 1.0)
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    weights[weights < sampling.get("min_p", 0.0)] = 0.0
    for row in weights:
        order = np.argsort(-row)
        row[order[sampling.get("top_k") or VOCAB :]] = 0.0
        before = np.concatenate([[0.0], np.cumsum(row[order])[:-1]]) / row.sum()
        row[order[before >= sampling.get("top_p", 1.0)]] = 0.0
    return weights / weights.sum(1, keepdims=True)


def p_value(counts, expected):
    """Of the chi-square statistic, by the normal approximation of Wilson and Hilferty (1931)."""
    is_seen = expected > 0
    assert not counts[~is_seen].any(), "a token of probability 0 was drawn"
    wide = expected >= 5
    pairs = [*zip(counts[wide], expected[wide], strict=True)]
    pairs.append((counts[is_seen & ~wide].sum(), expected[is_seen & ~wide].sum()))
    pairs = [(o, e) for o, e in pairs if e > 0]
    free = len(pairs) - 1
    statistic = sum((o - e) ** 2 / e for o, e in pairs)
    z = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5
    return 0.5 * math.erfc(z / 2**0.5)


@pytest.fixture(scope="module")
def draws():
    """The uniform numbers of each sequence, by position."""
    places = 1 + TOKENS + K + 1
    seeds = [seed for seed in range(DRAWS) for _ in range(places)]
    return uniforms(seeds, list(range(places)) * DRAWS).reshape(DRAWS, places)


@pytest.mark.parametrize(
    ("kernels", "name"), [*(("cpu", name) for name in SAMPLING), ("reference", "narrow")]
)
def test_the_first_tokens_are_distributed_as_the_target_says(draws, kernels, name):
    if kernels == "cpu" and not library.register():
        pytest.skip("the kernels are not built")
    tokens, stood = guess_and_verify(Sampler(kernels, SAMPLING[name]), draws)
    assert stood > 0.3 * DRAWS * TOKENS / (K + 1)
    table, state = probabilities(SAMPLING[name]), np.eye(VOCAB)[0]
    for place in range(TOKENS):
        before, state = state, state @ table
        counts = np.bincount(tokens[:, place], minlength=VOCAB)
        assert p_value(counts, DRAWS * state) > P_MIN, place
        if place:
            pairs = np.bincount(tokens[:, place - 1] * VOCAB + tokens[:, place], minlength=VOCAB**2)
            joint = (before[:, None] * table).reshape(-1)
            assert p_value(pairs, DRAWS * joint) > P_MIN, f"pairs at {place}"


def test_the_test_finds_a_wrong_rule():
    """Accepting a guess whatever the target says is found out."""
    rng = np.random.default_rng(0)
    table = probabilities({})
    wrong = np.bincount(rng.choice(VOCAB, DRAWS, p=table[1]), minlength=VOCAB)
    assert p_value(wrong, DRAWS * table[0]) < 1e-6
    right = np.bincount(rng.choice(VOCAB, DRAWS, p=table[0]), minlength=VOCAB)
    assert p_value(right, DRAWS * table[0]) > P_MIN
