"""Two hosts in network namespaces: the same tokens; a pulled cable is noticed at both ends."""

from __future__ import annotations

import time

import pytest

from ranvier.link.message import Failure
from tests.cluster.namespaces import ADDRESSES, hosts
from tests.cluster.processes import Cluster, expected

__all__ = ["hosts"]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def cluster(hosts):
    started = Cluster(2, prefix=hosts.prefix, address=ADDRESSES[0], step_s=0.01).ready()
    yield started
    started.close()


def test_two_hosts_give_the_tokens_of_one(cluster):
    cluster.admit("a", tokens=40)
    assert cluster.tokens("a") == {"a": expected([5, 6, 7], 40)}
    cluster.stop()
    assert {code for code, _ in cluster.ends()} == {0}


def test_a_pulled_cable_ends_both_in_time(cluster, hosts):
    cluster.admit("a", tokens=1000)
    cut_s = time.monotonic()
    hosts.cut()
    failure = cluster.wait(Failure)
    assert failure.kind == "ClusterError" and "rank 1" in failure.message
    assert [code for code, _ in cluster.ends()] == [7, 7]
    assert time.monotonic() - cut_s < 10
