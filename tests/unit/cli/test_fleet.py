"""Fleet: what each replica of a server is told."""

from __future__ import annotations

import pytest

from ranvier.cli.options.settings import Options
from ranvier.cli.serving.fleet import _divided


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"gpu_memory_utilization": 0.8}, 0.4),
        ({"gpu_memory_utilization": 0.8, "device": "cpu"}, 0.4),
        ({"gpu_memory_utilization": 0.8, "target": "cuda"}, 0.8),
        ({}, None),
    ],
)
def test_a_share_of_the_host_is_that_of_all_replicas(fields, share):
    assert _divided(Options(model="m", **fields), 2).gpu_memory_utilization == share
