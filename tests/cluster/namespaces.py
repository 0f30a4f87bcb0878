"""Two hosts on one machine: network namespaces with a cable between them."""

from __future__ import annotations

import os
import subprocess

import pytest

ADDRESSES = ("10.213.7.1", "10.213.7.2")


class Hosts:
    """Two namespaces; `prefix(i)` runs a command in the i-th. Needs the right to make them."""

    def __init__(self):
        self.names = [f"rv{os.getpid()}{side}" for side in "ab"]
        for name in self.names:
            ip("netns", "add", name)
        a, b = self.names
        ip("link", "add", a, "type", "veth", "peer", "name", b)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def prefix(self, host):
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self):
        """Pull the cable: nothing is refused, nothing arrives."""
        ip("-n", self.names[1], "link", "set", self.names[1], "down")

    def close(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Two hosts, or a skip with the reason."""
    made = Hosts.__new__(Hosts)
    try:
        made.__init__()
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"") or str(error).encode()
        getattr(made, "names", None) and made.close()
        pytest.skip(f"no network namespaces here: {told.decode().strip()}")
    yield made
    made.close()
