"""Clusters of real processes on loopback, with proxies between them that delay, cut and forge."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import msgspec

from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.link.message import (
    HEAD,
    Admit,
    FromEngine,
    News,
    Ready,
    Stop,
    decode,
    frame,
    frame_size,
)
from tests.cluster.rank import VOCAB


def free_port():
    """A port that is free now, and the one behind it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


class Cluster:
    """`count` ranks; `ranks` maps a rank to what differs there; `ports` to where it connects.

    `prefix` makes the words before a rank's command.
    """

    def __init__(self, count, ranks=None, ports=None, port=None, prefix=lambda rank: [], **given):
        self.port = port or free_port()
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.processes = []
        for rank in range(count):
            own = {
                "rank": rank, "count": count, "port": (ports or {}).get(rank, self.port),
                "fd": theirs.fileno(), **given, **(ranks or {}).get(rank, {}),
            }  # fmt: skip
            self.processes.append(
                subprocess.Popen(
                    [*prefix(rank), sys.executable, "-m", "tests.cluster.rank", json.dumps(own)],
                    pass_fds=[theirs.fileno()] if rank == 0 else [],
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=os.getcwd(),
                )
            )
        theirs.close()
        self.heard = self._hear()

    def _hear(self):
        decoder = msgspec.msgpack.Decoder(FromEngine)
        with self.socket.makefile("rb") as stream:
            while head := stream.read(HEAD.size):
                yield decode(stream.read(frame_size(head)), decoder)

    def wait(self, kind):
        """The next message of a kind; None at the end of the connection."""
        return next((m for m in self.heard if isinstance(m, kind)), None)

    def ready(self):
        assert self.wait(Ready) is not None, self.ends()
        return self

    def admit(self, *names, prompt=(5, 6, 7), tokens=5):
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens)
        requests = [
            Request(request_id=n, prompt_token_ids=list(prompt), params=params, seed=1)
            for n in names
        ]
        self.socket.sendall(frame(Admit(requests)))

    def tokens(self, *names):
        """The tokens of requests, to their ends, which must be good."""
        found, left = {name: [] for name in names}, set(names)
        for message in self.heard:
            for event in message.events if isinstance(message, News) else ():
                found[event.request_id] += event.token_ids
                if event.finish_reason:
                    assert event.finish_reason == "length", event
                    left.discard(event.request_id)
            if not left:
                return found
        raise AssertionError(f"the connection ended: {self.ends()}")

    def stop(self):
        self.socket.sendall(frame(Stop()))

    def ends(self, timeout_s=15):
        """Exit codes and what was said, by rank."""
        return [(p.wait(timeout_s), p.stderr.read()) for p in self.processes]

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)
            process.stderr.close()
        self.socket.close()


class Proxy:
    """Between a follower and the leader: `delay_s` holds what comes, `is_cut` drops it."""

    def __init__(self, port):
        self.port, self.delay_s, self.is_cut = free_port(), 0.0, False
        self._to = port
        self.gate = threading.Event()
        self.gate.set()
        self.sockets = []
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self._server.accept()
            self.gate.wait()
            while (far := self._reach()) is None:
                time.sleep(0.05)
            self.sockets = [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _reach(self):
        try:
            return socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            return None

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not self.is_cut:
                    sink.sendall(data)
            if not self.is_cut:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def expected(prompt, count):
    """What the simulated model says of a prompt, alone, greedy."""
    from ranvier.sim.runner import next_token

    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, 0.0, VOCAB))
    return tokens[len(prompt) :]
