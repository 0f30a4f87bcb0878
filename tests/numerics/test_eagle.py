"""A step with a draft head: its guesses are torch's, and no guess changes a token.

The goldens are those of tests/parity/make_eagle_goldens.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ranvier.build.eagle.open import open_eagle
from ranvier.core.step import Chunk, Sample, StepPlan
from tests.numerics.test_draft import KINDS, K, Row, make_runner, plain, step
from tests.parity.test_eagle import HEADS, LAYOUTS

CASES = [("cpu", name) for name in LAYOUTS] + [("reference", "eagle3"), ("unragged", "eagle3")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def drafting(request):
    kind, name = request.param
    assert kind in KINDS
    return make_runner(kind, open_draft=lambda *pair: open_eagle(HEADS / name, *pair)), name


def prefill(row, ids, size, newest=None):
    """Put a prompt through in chunks; the last one samples, and drafts where it can.

    `newest`: what follows the prompt is known, and nothing is sampled.
    """
    info, runner, ids = row.runner.info, row.runner, [int(i) for i in ids]
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        stop = start + len(part)
        is_last = stop == len(ids) and newest is None
        following = newest or 0 if stop == len(ids) else ids[stop]
        chunk = Chunk(start, part, row.blocks, next_id=following)
        samples = [Sample(0, len(part) - 1)] if is_last else []
        program = info.step(len(part), K) if info.is_ragged else info.prefill(len(part), stop)
        result = runner.collect(runner.dispatch(StepPlan(program, [chunk], samples)))
    row.tokens = [*ids, int(result.token_ids[0]) if newest is None else newest]
    row.drafts = [int(t) for t in result.drafts[0]] if program.draft else []
    row.absorbed = len(row.tokens) - 1


@pytest.mark.parametrize("size", [16, 7])
def test_guesses_behind_a_prompt_are_those_of_torch(drafting, size):
    runner, name = drafting
    golden = np.load(HEADS / name / "expected.npz")
    row = Row(runner, [1, 2])
    if runner.info.is_ragged:
        prefill(row, golden["ids"], size)
        assert row.tokens[-1] == golden["newest"]
    else:  # only a decode program drafts: the prompt without its last token, and then that one
        prefill(row, golden["ids"][:-1], size, newest=int(golden["ids"][-1]))
        step([row], K)
        assert row.tokens[-1] == golden["newest"]
    assert row.drafts == golden["guesses"][:K].tolist()


def test_guesses_depend_on_the_tokens_alone(drafting):
    """Whatever was guessed, accepted and rejected before, and beside whom."""
    runner, _ = drafting
    want = plain(runner, 24)
    seen: dict[int, list[int]] = {}
    for spoil in (None, 0, K - 1):
        row, other = Row(runner, [3, 4]), Row(runner, [5, 6], temperature=1.0)
        rows = [row] if spoil is None else [row, other]
        for one in rows:
            step([one], 0, start=0)
        while len(row.tokens) < len(want):
            if spoil is not None and len(row.drafts) > spoil:
                row.drafts[: spoil + 1] = want[len(row.tokens) :][: spoil + 1]
                row.drafts = row.drafts[: K if spoil else 1]
            step(rows, K)
            if len(row.tokens) < len(want):
                assert seen.setdefault(len(row.tokens), row.drafts) == row.drafts
        assert row.tokens[: len(want)] == want
    assert len(seen) > 4
