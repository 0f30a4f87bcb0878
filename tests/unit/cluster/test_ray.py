"""Ranks on a Ray cluster: where they are placed, what each is given, how their end is told."""

from __future__ import annotations

import builtins
import sys
import types

import pytest
from tests.conftest import eventually
from tests.unit.cluster.fake_ray import FakeRay

from ranvier.cli.options.cluster import ClusterOptions
from ranvier.cli.options.settings import Options
from ranvier.cli.serving import ray_ranks
from ranvier.cli.serving.order import EngineOrder
from ranvier.cluster.ray import RayRanks, open_ray
from ranvier.core.errors import ClusterError, ConfigError

ECHO = "import sys; data = sys.stdin.buffer.read(); sys.exit(len(data))"


@pytest.mark.parametrize(
    ("platform", "each"),
    [("neuron", {"neuron_cores": 32}), ("cuda", {"GPU": 32}), ("cpu", {"CPU": 1}),
     ("auto", {"CPU": 1})],
)  # fmt: skip
def test_a_bundle_a_rank_the_first_is_here(platform, each):
    ray = FakeRay()
    RayRanks(ray, 3, platform=platform, devices=32, timeout_s=1).close()
    (kind, bundles, strategy), removed = ray.log
    assert kind == "group" and strategy == "SPREAD" and removed[0] == "removed"
    assert bundles == [{**each, "node:127.0.0.1": 0.001}, each, each]


def test_every_rank_runs_its_command_with_its_own_input_and_its_end_is_told():
    ray, ends = FakeRay(), {}
    ranks = RayRanks(ray, 3, platform="cpu", devices=1, timeout_s=1)
    ranks.start([sys.executable, "-c", ECHO], lambda rank: b"x" * rank, ends.__setitem__)
    eventually(lambda: len(ends) == 2, 20)
    assert ends == {1: "code 1", 2: "code 2"}
    ranks.close()
    assert [entry[1] for entry in ray.log if entry[0] == "killed"] == [1, 2]


def test_an_actor_that_cannot_start_its_command_is_told_too():
    ray, ends = FakeRay(), {}
    ranks = RayRanks(ray, 2, platform="cpu", devices=1, timeout_s=1)
    ranks.start(["/no/such/command"], lambda rank: b"", ends.__setitem__)
    eventually(lambda: ends, 20)
    assert ends == {1: "RayError"}


def test_a_cluster_without_room_is_an_error_and_nothing_stays_reserved():
    ray = FakeRay(cpus=2)
    with pytest.raises(ClusterError, match="no room for 3 ranks"):
        RayRanks(ray, 3, platform="cpu", devices=1, timeout_s=0)
    assert ray.log[-1][0] == "removed"


def test_ranks_get_the_order_with_their_number_and_one_key(monkeypatch):
    given = []

    class Ranks:
        address = "10.0.0.5"

        def __init__(self, ray, count, **kinds):
            given.append(kinds)

        def start(self, command, order, on_end):
            given.extend(EngineOrder.load(order(rank)) for rank in (1, 2, 3))

    monkeypatch.setattr(ray_ranks, "RayRanks", Ranks)
    monkeypatch.setattr(ray_ranks, "open_ray", lambda: None)
    options = Options(model="m", tensor_parallel_size=8, target="neuron-trn2")
    order, _ = ray_ranks.start_ranks(options, ClusterOptions(nnodes=4, master_port=1234))
    assert given[0] == {"platform": "neuron", "devices": 2, "timeout_s": 600.0}
    assert [o.place.rank for o in given[1:]] == [1, 2, 3]
    assert {(o.place.address, o.place.port, o.key, o.options) for o in given[1:]} == {
        ("10.0.0.5", 1234, order.key, options)
    }
    assert order.place.is_leader and len(order.key) == 32


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"nnodes": 2, "node_rank": 1}, "node_rank is given"),
     ({"nnodes": 2, "master_addr": "a"}, "master_addr is given"),
     ({"nnodes": 3}, "share evenly"),
     ({"nnodes": 2, "data_parallel_size": 2}, "several engines")],
)  # fmt: skip
def test_what_ray_decides_is_not_given(fields, says):
    options = Options(model="m", tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=says):
        ray_ranks.start_ranks(options, ClusterOptions(**fields))


def test_one_rank_needs_no_ray():
    order, ranks = ray_ranks.start_ranks(Options(model="m"), ClusterOptions())
    assert order.place is None and ranks is None


def test_without_ray_or_without_its_cluster_the_error_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def no_ray(name, *given, **named):
        if name == "ray":
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    with pytest.raises(ConfigError, match="pip install 'ranvier"):
        open_ray()
    monkeypatch.undo()

    def init(**given):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match="ray start --head"):
        open_ray()
