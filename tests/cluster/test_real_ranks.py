"""Two processes, a rank of the real engine each, give the tokens of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request

from tests.conftest import eventually

START_S = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port, model):
    body = {"model": model, "prompt": [3, 4, 5], "max_tokens": 6, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]


def is_ready(port, process):
    assert process.poll() is None, "rank 0 ended"
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except OSError:
        return False
    return True


def test_two_processes_give_the_tokens_of_one(tiny_options, llm, tmp_path):
    from ranvier import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (expected,) = llm.generate([{"prompt_token_ids": [3, 4, 5]}], params, use_tqdm=False)
    port, master = free_port(), free_port()
    words = [sys.executable, "-m", "ranvier", "serve", tiny_options["model"],
             "--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "4",
             "--max-num-batched-tokens", "32", "--artifacts", str(tmp_path / "artifacts"),
             "--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1",
             "--master-port", str(master), "--port", str(port)]  # fmt: skip
    environment = {**os.environ, "RANVIER_CACHE_ROOT": str(tmp_path / "cache")}
    ranks = [
        subprocess.Popen([*words, "--node-rank", str(rank)], env=environment) for rank in (1, 0)
    ]
    try:
        eventually(lambda: is_ready(port, ranks[1]), START_S)
        choice = answer(port, tiny_options["model"])
    finally:
        ranks[1].terminate()
        for process in reversed(ranks):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert choice["token_ids"] == list(expected.outputs[0].token_ids)
    assert choice["finish_reason"] == "length"
