"""Ranks as real processes: the same tokens, and a loss ends everything in time, with an error."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import pytest

from ranvier.link.message import Failure, Ready
from tests.cluster.processes import Cluster, Proxy, expected, free_port
from tests.conftest import eventually

IN_TIME_S = 10
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def start():
    started = []

    def start(count, **given):
        started.append(Cluster(count, **given))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


def fails(cluster, since_s, *, killed=(), says):
    """The front hears a clear error in time; ranks that live leave with the code for again."""
    failure = cluster.wait(Failure)
    assert failure is not None and failure.kind == "ClusterError", cluster.ends()
    assert says in failure.message
    ends = [p.wait(15) for r, p in enumerate(cluster.processes) if r not in killed]
    assert time.monotonic() - since_s < IN_TIME_S
    assert set(ends) == {7}


@pytest.mark.parametrize("count", [2, 4])
def test_every_rank_runs_every_step_and_all_stop_together(start, count):
    cluster = start(count).ready()
    cluster.admit("a", "b", tokens=40)
    assert cluster.tokens("a", "b") == dict.fromkeys("ab", expected([5, 6, 7], 40))
    cluster.stop()
    assert {code for code, _ in cluster.ends()} == {0}


@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_killed_while_it_loads_ends_the_start(start, rank):
    cluster = start(3, load_s=30)
    assert "there" in cluster.processes[0].stderr.readline()
    assert "there" in cluster.processes[0].stderr.readline()
    killed_s = time.monotonic()
    cluster.processes[rank].kill()
    fails(cluster, killed_s, killed=[rank], says=f"rank {rank}")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_killed_at_work_ends_every_request_with_an_error(start, phase, rank):
    cluster = start(3, step_s=0.02).ready()
    prompt = range(4000) if phase == "prefill" else (5, 6, 7)
    cluster.admit("a", prompt=prompt, tokens=50)
    if phase == "decode":
        assert next(m.events for m in cluster.heard if getattr(m, "events", None))
    killed_s = time.monotonic()
    cluster.processes[rank].kill()
    fails(cluster, killed_s, killed=[rank], says=f"rank {rank}")


def test_the_leader_killed_ends_the_others(start):
    cluster = start(3, step_s=0.02).ready()
    cluster.admit("a", tokens=1000)
    killed_s = time.monotonic()
    cluster.processes[0].kill()
    assert [p.wait(10) for p in cluster.processes[1:]] == [7, 7]
    assert time.monotonic() - killed_s < IN_TIME_S
    assert "rank 0 is gone" in cluster.processes[1].stderr.read()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_noticed(start, rank):
    cluster = start(2, step_s=0.02).ready()
    cluster.admit("a", tokens=1000)
    stopped_s = time.monotonic()
    cluster.processes[rank].send_signal(signal.SIGSTOP)
    if rank:
        fails(cluster, stopped_s, killed=[1], says="rank 1")
        return
    assert cluster.processes[1].wait(IN_TIME_S) == 7
    assert "rank 0 has been silent" in cluster.processes[1].stderr.read()
    cluster.processes[0].send_signal(signal.SIGCONT)
    fails(cluster, time.monotonic(), says="rank")


def test_a_delay_of_five_seconds_kills_nobody_and_changes_no_token(start):
    port = free_port()
    proxy = Proxy(port)
    cluster = start(2, port=port, ports={1: proxy.port}).ready()
    proxy.delay_s = 5
    cluster.admit("a", tokens=20)
    time.sleep(5)
    proxy.delay_s = 0
    assert cluster.tokens("a") == {"a": expected([5, 6, 7], 20)}
    cluster.stop()
    assert {code for code, _ in cluster.ends()} == {0}


def test_a_cut_link_is_noticed_at_both_ends(start):
    port = free_port()
    proxy = Proxy(port)
    cluster = start(2, port=port, ports={1: proxy.port}, step_s=0.02).ready()
    cluster.admit("a", tokens=1000)
    proxy.is_cut = True
    fails(cluster, time.monotonic(), says="rank 1")


def test_a_step_that_fails_at_one_rank_ends_all(start):
    cluster = start(2, ranks={1: {"fail_at": 3}}).ready()
    cluster.admit("a", tokens=1000)
    fails(cluster, time.monotonic(), says="rank 1")


def test_a_rank_that_hangs_in_a_step_leaves_when_another_is_lost(start):
    """The leader's own step never ends, as a collective whose other side is dead."""
    cluster = start(3, ranks={0: {"hang_at": 3}, 2: {"hang_at": 3}}).ready()
    cluster.admit("a", tokens=1000)
    killed_s = time.monotonic()
    cluster.processes[1].kill()
    fails(cluster, killed_s, killed=[1], says="rank 1")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"facts": {"ranks": "4"}}, ["ranks: 3 at rank 0, 4 at rank 2"]),
        ({"facts": {"code": "2"}}, ["code: 1 at rank 0, 2 at rank 2"]),
        ({"artifact": {"key": "b"}}, ["key: a at rank 0, b at rank 2", "artifact"]),
    ],
    ids=["world size", "code", "artifact"],
)
def test_ranks_that_differ_are_refused_with_the_difference(start, given, says):
    cluster = start(3, ranks={2: given})
    assert cluster.wait(Ready) is None
    ends = cluster.ends()
    assert {code for code, _ in ends[1:]} == {2}
    for text in says:
        assert all(text in said for _, said in ends), ends


def test_another_key_is_refused_by_both_and_the_rest_may_come(start):
    cluster = start(2, ranks={1: {"key": "x" * 32}})
    code, said = cluster.processes[1].wait(10), cluster.processes[1].stderr.read()
    assert code == 7 and "same cluster key" in said
    assert cluster.processes[0].poll() is None


def _shout(port, data):
    """Say something to the control port; what it answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), 10) as stranger:
        stranger.sendall(data)
        stranger.settimeout(10)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while part := stranger.recv(4096):
                heard += part
        return heard


def test_strangers_are_refused_and_find_no_port_once_all_ranks_are_there(start):
    port = free_port()
    proxy = Proxy(port)
    proxy.gate.clear()
    cluster = start(2, port=port, ports={1: proxy.port})
    eventually(lambda: _can_reach(port), 10)
    for data in (b"GET / HTTP/1.1\r\n\r\n" * 9, bytes(1000), b"\xff" * 2**20):
        assert len(_shout(port, data)) <= 40  # the challenge, and nothing more
    proxy.gate.set()
    cluster.ready()
    assert not _can_reach(port)
    cluster.admit("a", tokens=20)
    assert cluster.tokens("a") == {"a": expected([5, 6, 7], 20)}
    cluster.stop()
    ends = cluster.ends()
    assert {code for code, _ in ends} == {0}
    assert "is refused" in ends[0][1]


def _can_reach(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
