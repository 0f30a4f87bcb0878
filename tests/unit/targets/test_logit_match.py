"""Token and logit matching with NxD Inference's tolerances; reference files and wrong ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ranvier.core.errors import ConfigError
from ranvier.targets.logit_match import (
    TOLERANCES,
    Tolerance,
    match_logits,
    match_tokens,
    parse_tolerances,
)
from ranvier.targets.reference_file import (
    Reference,
    ReferencePrompt,
    load_reference,
    save_reference,
)

RANDOM = np.random.default_rng(1)
GOLDEN = RANDOM.normal(size=(4, 64)).astype(np.float32) * 5
PROMPT = ReferencePrompt((1, 2), (3, 4, 5, 6), GOLDEN)


def test_tolerances_are_the_published_ones():
    table = [(t.top, t.atol, t.rtol) for t in TOLERANCES]
    assert table == [(5, 1e-5, 0.01), (50, 1e-5, 0.02), (1000, 1e-5, 0.03), (None, 1e-5, 0.05)]


def test_tokens_name_the_first_divergence():
    assert match_tokens([1, 2, 3], [1, 2, 3]).passed
    found = match_tokens([1, 2, 3], [1, 9, 3])
    assert (found.matched, found.first) == (1, (1, 2, 9))
    assert match_tokens([1, 2], [1]).first == (1, 2, -1)


def test_equal_logits_pass():
    match = match_logits(GOLDEN, GOLDEN.copy())
    assert match.passed
    assert match.errors == (0, 0, 0, 0)
    assert match.first_divergence is None


def test_bound_is_relative_to_the_largest_logit():
    """A logit outside the top 5 is off by 4 % of the largest: top-50 fails, all does not."""
    found = GOLDEN.copy()
    largest = np.abs(GOLDEN[2]).max()
    tenth = np.argsort(GOLDEN[2])[-10]
    found[2, tenth] -= 0.04 * largest
    match = match_logits(GOLDEN, found)
    by_name = {result.tolerance.name: result for result in match.results}
    assert by_name["top-5"].passed
    assert not by_name["top-50"].passed
    assert by_name["top-50"].position == 2
    assert by_name["top-50"].error == pytest.approx(0.04 * largest, rel=1e-5)
    assert by_name["all"].passed
    assert not match.passed
    assert match.errors[2] == pytest.approx(0.04 * largest, rel=1e-5)


def test_divergence_is_allowed_only_when_the_reference_is_near_a_tie():
    near, far = GOLDEN.copy(), GOLDEN.copy()
    first, second = np.argsort(GOLDEN[1])[::-1][:2]
    tied = GOLDEN.copy()
    tied[1, second] = tied[1, first] - 0.0005
    near[1] = tied[1]
    near[1, second] += 0.001
    match = match_logits(tied, near)
    assert match.passed
    (divergence,) = match.divergences
    assert (divergence.position, divergence.expected, divergence.found) == (1, first, second)
    assert divergence.is_allowed
    far[1, second] = far[1, first] + 0.001
    match = match_logits(GOLDEN, far, tolerances=[Tolerance(None, 0, 1)])
    assert not match.passed
    assert match.first_divergence == 1


def test_nan_is_beyond_every_bound():
    found = GOLDEN.copy()
    found[3, 7] = np.nan
    match = match_logits(GOLDEN, found)
    assert not match.passed
    assert match.results[-1].position == 3


def test_draft_is_compared_up_to_its_first_divergence():
    found = GOLDEN.copy()
    found[2] = -found[2]
    assert not match_logits(GOLDEN, found).passed
    match = match_logits(GOLDEN, found, tolerances=[Tolerance(2, 1e-5, 0.01)], is_draft=True)
    assert match.passed
    assert len(match.errors) == 2


def test_shapes_must_agree():
    with pytest.raises(ConfigError, match=r"\(4, 64\), ours \(3, 64\)"):
        match_logits(GOLDEN, GOLDEN[:3])


def test_tolerance_map():
    assert parse_tolerances({"5": [0, 1], "all": [1e-5, 0.1]}) == (
        Tolerance(5, 0, 1),
        Tolerance(None, 1e-5, 0.1),
    )
    for wrong in ({}, [], {"x": [1, 2]}, {"5": [1]}, {"0": [1, 1]}, {"5": [-1, 0]}, None):
        with pytest.raises(ConfigError, match="tolerance map"):
            parse_tolerances(wrong)


def test_reference_file_round_trip(tmp_path):
    path = tmp_path / "reference.npz"
    save_reference(path, Reference("model", "someone", (PROMPT, PROMPT)))
    found = load_reference(path)
    assert (found.model, found.made_by, found.vocab_size) == ("model", "someone", 64)
    assert found.prompts[1].token_ids == PROMPT.token_ids
    np.testing.assert_array_equal(found.prompts[0].logits_NV, GOLDEN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["reference.npz"]


META = np.frombuffer(json.dumps({"format": 1, "model": "m", "made_by": "b"}).encode(), np.uint8)
WHOLE = {
    "meta": META,
    "prompt_0": np.array([1, 2]),
    "tokens_0": np.array([3, 4, 5, 6]),
    "logits_0": GOLDEN,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": np.frombuffer(b'{"format": 9}', np.uint8)}, "format 9; this version reads 1"),
        ({"meta": np.frombuffer(b"[]", np.uint8)}, "no reference file"),
        ({"logits_0": None}, "logits_0 is missing"),
        ({"prompt_0": None}, "holds 0 prompts"),
        ({"tokens_0": np.array([3, 4, 5, 64])}, "within the vocabulary"),
        ({"tokens_0": np.array([3, 4])}, "entry 0 must be ids"),
        ({"logits_0": GOLDEN.astype(np.float16)}, "finite f32 logits"),
        ({"logits_0": np.full((4, 64), np.nan, np.float32)}, "finite f32 logits"),
        ({"logits_0": np.array([{}], object)}, "no reference file"),
    ],
)
def test_wrong_reference_files_are_refused(tmp_path, change, message):
    path = tmp_path / "wrong.npz"
    np.savez(path, **{k: v for k, v in {**WHOLE, **change}.items() if v is not None})
    with pytest.raises(ConfigError, match=message):
        load_reference(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("not an archive")
    with pytest.raises(ConfigError, match="no reference file"):
        load_reference(path)
    with pytest.raises(ConfigError, match="no reference file"):
        load_reference(tmp_path / "absent.npz")
    with pytest.raises(ConfigError, match="can't be written"):
        save_reference(tmp_path / "no/reference.npz", Reference("m", "b", (PROMPT,)))
