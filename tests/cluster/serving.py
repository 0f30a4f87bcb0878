"""`ranvier serve` as ranks on loopback or on two hosts: real processes, the tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import httpx

from tests.cluster.processes import free_port

KEY = "0123456789abcdef" * 4


class Ranks:
    """`count` ranks of one server; `own` are flags of a rank alone.

    `prefix` makes the words before a rank's command.
    """

    def __init__(self, count, options, *flags, address="127.0.0.1", own=None, prefix=None):
        self.processes, self.lines, self.url = [], [[] for _ in range(count)], None
        self._ready = threading.Event()
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        port = free_port()
        for rank in range(count):
            command = [
                *(prefix(rank) if prefix else ()), sys.executable, "-m", "ranvier.cli.main",
                "serve", *words,
                "--port=0", f"--nnodes={count}", f"--node-rank={rank}",
                f"--master-addr={address}", f"--master-port={port}",
                "--cluster-start-timeout=100", *flags, *(own or {}).get(rank, ()),
            ]  # fmt: skip
            process = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "RANVIER_CLUSTER_KEY": KEY},
            )  # fmt: skip
            self.processes.append(process)
            threading.Thread(target=self._read, args=(rank,), daemon=True).start()

    def _read(self, rank):
        for line in self.processes[rank].stderr:
            self.lines[rank].append(line)
            if "ready at" in line:
                self.url = line.split("ready at ")[1].split()[0]
                self._ready.set()
        self._ready.set()

    def ready(self):
        assert self._ready.wait(100) and self.url is not None, self.said()
        return self

    def said(self):
        return "\n".join("".join(lines) for lines in self.lines)

    def complete(self, prompt="Hi", tokens=16):
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(self.url + "/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    def stream(self, tokens=100):
        body = {"prompt": ["Hi"] * 40, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        return httpx.stream("POST", self.url + "/v1/completions", json=body, timeout=30)

    def codes(self, timeout_s=15):
        return [process.wait(timeout_s) for process in self.processes]

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
