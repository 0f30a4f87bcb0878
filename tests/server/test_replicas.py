"""`ranvier serve --data-parallel-size 2` one dies, the server goes on and restarts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import eventually
from tests.server.test_process import Process, _children, _is_running


@pytest.fixture
def server(tiny_options, tmp_path):
    process = Process(tiny_options, tmp_path, "--data-parallel-size=2")
    yield process
    process.end()


def complete(server, prompt="Hi", **fields):
    body = {"prompt": prompt, "max_tokens": 8, "ignore_eos": True, "temperature": 0, **fields}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=30)
    return answer.status_code, answer.json()


def test_two_engines_serve_and_one_that_dies_takes_its_own_requests_only(server):
    engines = _engines(server)
    assert len(engines) == 2
    cores = [_cores(pid) for pid in engines]
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1]
    status, first = complete(server)
    for _ in range(3):  # whichever replica answers
        assert complete(server)[1]["choices"][0]["text"] == first["choices"][0]["text"]
    status, both = complete(server, ["Hi"] * 8)
    assert {c["text"] for c in both["choices"]} == {first["choices"][0]["text"]}
    os.kill(engines[0], signal.SIGKILL)
    eventually(lambda: server.get("/health").text != "", 5)
    health = server.get("/health")
    assert health.status_code == 200 and "Replica 1 of 2" in health.json()["degraded"]
    for _ in range(4):
        assert complete(server)[1]["choices"][0]["text"] == first["choices"][0]["text"]
    eventually(lambda: "degraded" not in server.get("/health").text, 30)
    again = _engines(server)
    assert len(again) == 2 and engines[0] not in again
    for pid in again:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: server.get("/health").status_code == 503, 5)
    assert complete(server)[0] == 503
    eventually(lambda: server.get("/health").text == "", 30)
    assert complete(server)[1]["choices"][0]["text"] == first["choices"][0]["text"]
    engines += again + _engines(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    eventually(lambda: not any(map(_is_running, engines)), 5)
    assert not list(server.temp.iterdir())


def _engines(server):
    children = [int(pid) for pid in _children(server.process.pid)]
    return [pid for pid in children if "engine_process" in _command(pid)]


def _command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def _cores(pid):
    return os.sched_getaffinity(pid)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data-parallel-size=0"], "data_parallel_size is 0"),
        (["--data-parallel-size=2", "--nnodes=2", "--node-rank=0", "--master-addr=127.0.0.1"],
         "several engines or one engine over several ranks"),
        (["--nnodes=2", "--node-rank=0", "--master-addr=127.0.0.1"], "can't share evenly"),
        (["--nnodes=2", "--node-rank=0"], "--master-addr"),
        (["--nnodes=2", "--node-rank=0", "--master-addr=10.9.8.7", "--tensor-parallel-size=2"],
         "need a key"),
        (["--distributed-executor-backend=rya"], "Did you mean ray?"),
        (["--distributed-executor-backend=uni", "--data-parallel-size=2"], "one process"),
        (["--enable-expert-parallel"], "no family with experts"),
    ],
)  # fmt: skip
def test_what_cannot_run_together_is_refused_before_anything_is_built(tiny_options, flags, says):
    words = [sys.executable, "-m", "ranvier.cli.main", "serve", tiny_options["model"], "--port=0"]
    ended = subprocess.run([*words, *flags], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and says in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
