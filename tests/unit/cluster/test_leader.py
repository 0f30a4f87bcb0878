"""Rank 0's side, alone: where it listens, whom it waits for, and that it ends once."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from tests.cluster.processes import free_port

from ranvier.cluster import leader as module
from ranvier.cluster.broadcast import BroadcastRunner
from ranvier.cluster.detect import Place
from ranvier.cluster.leader import Group
from ranvier.core.errors import ClusterError, ConfigError, DeviceError
from ranvier.core.limits import LIMITS
from ranvier.core.media import ImageItem

KEY = b"k" * 32


def group(ends, count=2, **given):
    return Group(Place(0, count, "127.0.0.1", free_port()), KEY, ends.append, **given)


def test_an_address_of_another_machine_or_a_port_in_use_is_an_error_that_says_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place(0, 2, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="in use"):
            Group(place, KEY, lambda error: None)
    with pytest.raises(ConfigError, match="cannot listen on 203.0.113.9"):
        Group(Place(0, 2, "203.0.113.9"), KEY, lambda error: None)


def test_a_name_that_is_not_known_yet_is_asked_for_again(monkeypatch):
    real, asked = socket.getaddrinfo, []

    def lookup(host, port, **given):
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(-2, "Name or service not known")
        return real("127.0.0.1", port, **given)

    monkeypatch.setattr(module.socket, "getaddrinfo", lookup)
    place = Place(0, 2, "job-0.ranks", free_port())
    Group(place, KEY, lambda error: None, resolve_s=30).close()
    assert asked == ["job-0.ranks"] * 2
    asked.clear()
    with pytest.raises(ConfigError, match="Name or service not known"):
        Group(place, KEY, lambda error: None)


def test_ranks_that_never_come_are_named_and_the_group_ends_once():
    ends = []
    waiting = group(ends, count=4)
    with pytest.raises(ClusterError, match="ranks 1, 2, 3 did not come within 0 s"):
        waiting.gather(0)
    assert waiting.fail("again") is waiting.error is ends[0] and len(ends) == 1
    with pytest.raises(ClusterError, match="did not come"):
        waiting.check()


def test_a_group_that_was_told_to_stop_fails_no_more():
    ends = []
    stopped = group(ends)
    stopped.close()
    stopped.fail("too late")
    assert ends == [] and stopped.error is None


def test_a_picture_too_large_to_be_sent_fails_alone():
    ends = []
    alone = group(ends, count=1)
    image = ImageItem(
        digest=b"d", pixels=np.zeros(LIMITS.request_bytes_max, np.uint8).tobytes(),
        shape=(1,), grid=(1, 1, 1), size=(1, 1), spans=((0, 1),),
    )  # fmt: skip
    with pytest.raises(DeviceError, match="can't be sent"):
        BroadcastRunner(None, alone).encode(image, [0])
    alone.check()
    alone.close()
