"""Two processes, a rank of the real engine each, give the tokens of one, with all that is cut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.adapters import LLAMA, modules_of, random_tensors, save_adapter
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


def has_drafted(port):
    """Whether the policy, which tries it now and then, has let the draft model guess."""
    answer(port, "second")
    name = "vllm:spec_decode_num_draft_tokens_total"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)) > 0


def is_ready(port, process):
    assert process.poll() is None, "rank 0 ended"
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters in a folder."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        save_adapter(root / name, random_tensors(modules_of(LLAMA), 8, seed, scale=2.0))
    return root


def expected(tiny_options, adapters):
    """Tokens of one process on one device, by the model's name."""
    from ranvier import LLM, LoRARequest, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompts = [{"prompt_token_ids": [3, 4, 5]}] * 3
    wanted = [None, *(LoRARequest(n, 1, str(adapters / n)) for n in ("first", "second"))]
    with LLM(**tiny_options, enable_lora=True, max_loras=2) as llm:
        outputs = llm.generate(prompts, params, lora_request=wanted, use_tqdm=False)
    names = (tiny_options["model"], "first", "second")
    return {
        name: list(output.outputs[0].token_ids) for name, output in zip(names, outputs, strict=True)
    }


def test_two_processes_give_the_tokens_of_one(tiny_options, adapters, tmp_path):
    want = expected(tiny_options, adapters)
    assert len({tuple(tokens) for tokens in want.values()}) == 3
    guess = {"method": "draft_model", "model": tiny_options["model"], "num_speculative_tokens": 3}
    port, master = free_port(), free_port()
    words = [sys.executable, "-m", "ranvier", "serve", tiny_options["model"],
             "--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "4",
             "--max-num-batched-tokens", "32", "--artifacts", str(tmp_path / "artifacts"),
             "--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1",
             "--master-port", str(master), "--port", str(port),
             "--enable-lora", "--max-loras", "1", "--lora-folder", str(adapters),
             "--lora-modules", f"first={adapters / 'first'}",
             "--speculative-config", json.dumps(guess)]  # fmt: skip
    environment = {**os.environ, "RANVIER_CACHE_ROOT": str(tmp_path / "cache")}
    ranks = [
        subprocess.Popen([*words, "--node-rank", str(rank)], env=environment) for rank in (1, 0)
    ]
    try:
        eventually(lambda: is_ready(port, ranks[1]), START_S)
        with ThreadPoolExecutor(8) as pool:  # of one slot: adapters take turns in it
            asked = [*want, *want]
            choices = list(pool.map(lambda name: answer(port, name), asked))
        eventually(lambda: has_drafted(port), 60)
    finally:
        ranks[1].terminate()
        for process in reversed(ranks):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert [choice["token_ids"] for choice in choices] == [want[name] for name in asked]
