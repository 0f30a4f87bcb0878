"""Real processes on the tiny model: start, death of either side, drain, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import eventually


class Process:
    """`ranvier serve` on a free port; `engine` is the id of its child."""

    def __init__(self, options, temp, *flags):
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self.temp = temp
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ranvier.cli.main", "serve", *words, "--port=0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temp)},
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "ready at" in line:
                self.url = line.split("ready at ")[1].split()[0]
                break
        else:
            raise AssertionError("".join(self.lines))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.engine = int(_children(self.process.pid)[0])

    def _read(self):
        self.lines += list(self.process.stderr)

    def get(self, path):
        return httpx.get(self.url + path, timeout=5)

    def stream(self, tokens=100):
        """The lines of a long stream."""
        body = {"prompt": "Hi", "max_tokens": tokens, "stream": True, "ignore_eos": True}
        return httpx.stream("POST", self.url + "/v1/completions", json=body, timeout=30)

    def is_gone(self):
        left = [pid for pid in (self.process.pid, self.engine) if _is_running(pid)]
        return not left and not list(self.temp.iterdir())

    def end(self):
        for pid in (self.engine, self.process.pid):
            if _is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def start(tiny_options, tmp_path):
    started = []

    def start(*flags):
        started.append(Process(tiny_options, tmp_path, *flags))
        return started[-1]

    yield start
    for process in started:
        process.end()


def run_to_end(*words):
    command = [sys.executable, "-m", "ranvier.cli.main", "serve", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_start_tells_its_phases_and_the_engine_s_trouble_is_told_at_once(start):
    server = start("--engine-stall-timeout=0.8")
    _phases_sum_to_the_total(server.lines)
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "jaxlib" not in maps
    assert not list(server.temp.iterdir())  # the socket is forgotten once it is connected
    assert server.get("/health").status_code == 200
    os.kill(server.engine, signal.SIGSTOP)
    eventually(lambda: server.get("/health").status_code == 503, 1.8)
    assert "stuck" in server.get("/health").json()["error"]["message"]
    os.kill(server.engine, signal.SIGCONT)
    eventually(lambda: server.get("/health").status_code == 200, 1)
    _stalls_in_the_middle_of_a_stream(server)
    _dies_in_the_middle_of_a_stream(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(5) == 0
    eventually(server.is_gone, 5)


def _phases_sum_to_the_total(lines):
    rows = [line.split() for line in lines if line.endswith(" s\n")]
    values = [float(row[-2]) for row in rows]
    assert rows[-1][1] == "total"
    assert abs(sum(values[:-1]) - values[-1]) < 0.01 * len(values)
    assert [row[1] for row in rows[:2]] == ["imports", "start"]


def _stalls_in_the_middle_of_a_stream(server):
    body = {"prompt": ["Hi"] * 200, "max_tokens": 100, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(server.engine, signal.SIGSTOP)
        stopped_s = time.monotonic()
        rest = [line for line in lines if line]
    assert time.monotonic() - stopped_s < 3
    assert "engine has been stuck" in rest[-2] and rest[-1] == "data: [DONE]"
    os.kill(server.engine, signal.SIGCONT)
    eventually(lambda: server.get("/health").status_code == 200, 3)
    again = httpx.post(server.url + "/v1/completions", json={"prompt": "Hi", "max_tokens": 3})
    assert again.status_code == 200


def _dies_in_the_middle_of_a_stream(server):
    body = {"prompt": ["Hi"] * 200, "max_tokens": 100, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(server.engine, signal.SIGKILL)
        killed_s = time.monotonic()
        eventually(lambda: server.get("/health").status_code == 503, 1)
        rest = [line for line in lines if line]
    assert time.monotonic() - killed_s < 2
    assert "engine process has died" in rest[-2] and rest[-1] == "data: [DONE]"
    answer = httpx.post(server.url + "/v1/completions", json={"prompt": "Hi"})
    assert answer.status_code >= 500 and "died" in answer.json()["error"]["message"]


def test_a_signal_drains_what_is_open_and_refuses_the_rest(start):
    server = start()
    body = {"prompt": ["Hi"] * 40, "max_tokens": 100, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/health").status_code == 503, 1)
        assert server.get("/live").status_code == 200
        refused = httpx.post(server.url + "/v1/completions", json={"prompt": "Hi"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and '"error"' not in "".join(rest)
    assert "".join(rest).count('"length"') == 40
    assert server.process.wait(5) == 0
    eventually(server.is_gone, 5)


def test_a_second_signal_ends_at_once(start):
    server = start()
    body = {"prompt": ["Hi"] * 1000, "max_tokens": 100, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: server.get("/health").status_code == 503, 1)
        server.process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert "shutting down" in rest[-2]
    assert server.process.wait(2) == 0
    eventually(server.is_gone, 5)


def test_the_engine_dies_with_the_server(start):
    server = start()
    os.kill(server.process.pid, signal.SIGKILL)
    eventually(server.is_gone, 5)


def test_a_signal_during_the_start_breaks_it_off(tiny_options, tmp_path):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in tiny_options.items()]
    command = [sys.executable, "-m", "ranvier.cli.main", "serve", *words, "--port=0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    eventually(lambda: _children(process.pid), 30)
    engine = int(_children(process.pid)[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 130
    assert b"Traceback" not in process.stderr.read()
    eventually(lambda: not _is_running(engine) and not list(tmp_path.iterdir()), 5)


def test_a_failed_start_prints_its_cause_last(tmp_path, tiny_options):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    ended = run_to_end(tmp_path, "--port=0", f"--artifacts={tmp_path / 'a'}")
    assert ended.returncode == 3, ended.stderr
    last = ended.stderr.strip().splitlines()
    assert any(line.startswith("ranvier: error:") for line in last[-2:]), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_told_before_anything_is_built(start, tiny_options):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_to_end(tiny_options["model"], f"--port={taken.getsockname()[1]}")
    assert ended.returncode == 2
    assert "in use" in ended.stderr and "--port" in ended.stderr
