"""A step that fails after it has consumed the donated cache: its error is told, the next is right.

The failing program really runs, so that its inputs are gone as they are when a device fails.
"""

from __future__ import annotations

import pytest

from ranvier import SamplingParams
from ranvier.core.errors import DeviceError

PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPT = list(range(3, 3 + 70))


class Failing:
    """A program that fails once, after it has run."""

    def __init__(self, program):
        self.program = program
        self.is_done = False

    def __call__(self, arguments):
        results = self.program(arguments)
        if not self.is_done:
            self.is_done = True
            raise RuntimeError("the device is out of order")
        return results


class Unreadable:
    """An output that tells of the failure when it is read."""

    def __array__(self, *_, **__):
        raise RuntimeError("the device is out of order")


class FailingLate(Failing):
    """A program whose failure shows when its output is read."""

    def __call__(self, arguments):
        results = self.program(arguments)
        if not self.is_done:
            self.is_done = True
            results[-1] = Unreadable()
        return results


def generate(llm, prompts):
    return [out.outputs[0].token_ids for out in llm.generate(prompts, PARAMS, use_tqdm=False)]


@pytest.mark.parametrize("kind", [Failing, FailingLate])
def test_a_step_that_takes_the_cache_with_it_fails_its_rows_and_no_prefix_is_trusted(llm, kind):
    engine = llm._engine
    expected = generate(llm, [PROMPT])
    hits = engine.stats().prefix_hits
    assert generate(llm, [PROMPT]) == expected and engine.stats().prefix_hits > hits
    programs = engine.runner._programs
    for shape, program in list(programs.items()):
        programs[shape] = kind(program)
    try:
        with pytest.raises(DeviceError, match="out of order"):
            generate(llm, [[7, 8, 9]])
    finally:
        programs.update({shape: failing.program for shape, failing in programs.items()})
    hits = engine.stats().prefix_hits
    assert generate(llm, [PROMPT]) == expected
    assert engine.stats().prefix_hits == hits
    assert engine.stats().blocks_free == engine.stats().blocks_total
