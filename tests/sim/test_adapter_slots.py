"""The simulated device tells adapters apart, and a slot is empty until its last piece is there."""

from __future__ import annotations

import numpy as np
import pytest

from ranvier.core.adapter import AdapterWeights
from ranvier.core.buckets import BucketSet
from ranvier.core.step import Chunk, RunnerInfo, Sample, StepPlan
from ranvier.sim.runner import SimulatedRunner

INFO = RunnerInfo(
    buckets=BucketSet(tokens=(8,)), rows_max=8, block_tokens=16, block_count=8, model_len_max=32,
    vocab_size=97, logprobs_max=1, edits_max=4, adapter_slots=2, adapter_rank_max=8,
)  # fmt: skip


def adapter(digest, pieces=3):
    table = np.zeros((1, 1, 1, 3), np.int32)
    return AdapterWeights(digest, 8, {"lora.blob": np.zeros((1, pieces, 4), np.float32)}, table)


def token(runner, slot, block):
    plan = StepPlan(INFO.step(2), [Chunk(0, [5, 6], [block], slot=slot)], [Sample(0, 1)])
    return int(runner.collect(runner.dispatch(plan)).token_ids[0])


def test_tokens_depend_on_the_adapter_in_the_slot():
    runner = SimulatedRunner(INFO)
    assert len(list(runner.place_adapter(1, adapter("aa")))) == 3
    list(runner.place_adapter(2, adapter("bb")))
    tokens = [token(runner, slot, slot + 1) for slot in (0, 1, 2)]
    assert len(set(tokens)) == 3
    list(runner.place_adapter(1, adapter("bb")))
    assert token(runner, 1, 2) == tokens[2]


def test_a_slot_is_not_used_before_its_last_piece_nor_when_emptied():
    runner = SimulatedRunner(INFO)
    pieces = runner.place_adapter(1, adapter("aa"))
    next(pieces)
    with pytest.raises(AssertionError, match="holds no adapter"):
        token(runner, 1, 1)
    list(pieces)
    token(runner, 1, 1)
    list(runner.place_adapter(1, None))
    with pytest.raises(AssertionError, match="holds no adapter"):
        token(runner, 1, 1)


def test_a_block_of_another_adapter_is_found_out():
    runner = SimulatedRunner(INFO)
    list(runner.place_adapter(1, adapter("aa")))
    token(runner, 0, 1)
    plan = StepPlan(INFO.step(1), [Chunk(2, [7], [1], slot=1)], [Sample(0, 0)])
    with pytest.raises(AssertionError, match="written by another adapter"):
        runner.dispatch(plan)
