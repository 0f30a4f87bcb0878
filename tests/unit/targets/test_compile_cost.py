"""The compile estimate is near the three published times; workers follow the host."""

from __future__ import annotations

import dataclasses

import pytest

from ranvier.targets.neuron.compile_cost import compile_cost, worker_bytes
from ranvier.targets.neuron.instances import GIB
from ranvier.targets.numbers import ModelNumbers, WeightGroup

MODEL = ModelNumbers(
    name="m", layers=32, hidden=1, heads=1, kv_heads=1, head_size=1, intermediate=1,
    vocab_size=1, model_len_max=1, groups=(),
)  # fmt: skip


@pytest.mark.parametrize(("billions", "seconds"), [(1.18, 96), (6.74, 362), (46.7, 1208)])
def test_published_times_come_out_within_a_fifth(billions, seconds):
    """OLMo-1B, Llama-2-7B, Mixtral: two programs, one after the other."""
    group = WeightGroup(kind="mlp", elements=int(billions * 1e9), sharding="even")
    model = dataclasses.replace(MODEL, groups=(group,))
    found = compile_cost(model, 2, vcpus=None, host_bytes=None)
    assert found.workers == 1
    assert found.seconds == pytest.approx(seconds, rel=0.2)


def test_workers_are_bounded_by_memory_cores_programs_and_eight():
    each = worker_bytes(32)
    assert each == 12 * GIB

    def workers(programs, vcpus, gib):
        return compile_cost(MODEL, programs, vcpus=vcpus, host_bytes=gib * GIB).workers

    assert workers(20, 192, 2048) == 8
    assert workers(20, 192, 48) == 3
    assert workers(20, 4, 2048) == 2
    assert workers(2, 192, 2048) == 2
    assert workers(20, 4, 8) == 1
