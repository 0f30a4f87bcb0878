"""The tiny model over processes: tokens as of one device in f32; a killed rank ends all with 7."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ranvier import SamplingParams
from tests.cluster.namespaces import ADDRESSES, hosts
from tests.cluster.serving import Ranks
from tests.conftest import eventually

__all__ = ["hosts"]

pytestmark = [pytest.mark.timeout(200), pytest.mark.long]
AGAIN = {7, -6}
"""jax's own runtime may notice the end of rank 0 first; it aborts."""
PROMPTS = ["Hi", "a longer prompt, of more than one block of thirty-two tokens", "x"]


@pytest.fixture
def start(tiny_options):
    started = []

    def start(count, *flags, **given):
        own = {"tensor_parallel_size": given.pop("tensor", count)}
        named = ("artifacts", "pipeline_parallel_size")
        own |= {k: given.pop(k) for k in named if k in given}
        options = {**tiny_options, **own}
        started.append(Ranks(count, options, *flags, **given))
        return started[-1]

    yield start
    for ranks in started:
        ranks.end()


@pytest.fixture(scope="module")
def expected(llm):
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    return [out.outputs[0].text for out in llm.generate(PROMPTS, params, use_tqdm=False)]


@pytest.mark.parametrize(
    ("count", "tensor"), [(2, 2), pytest.param(2, 4, marks=pytest.mark.long),
                          pytest.param(4, 4, marks=pytest.mark.long)],
)  # fmt: skip
def test_processes_give_the_tokens_of_one_and_stop_together(start, expected, count, tensor):
    ranks = start(count, tensor=tensor).ready()
    assert ranks.complete(PROMPTS) == expected
    assert [ranks.complete(prompt)[0] for prompt in PROMPTS] == expected
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert set(ranks.codes()) == {0}, ranks.said()


@pytest.mark.parametrize(("count", "tensor", "flags"), [
    (3, 1, []), (2, 2, []), (2, 2, ["--sequence-parallel"]),
])  # fmt: skip
def test_stages_over_processes_give_the_tokens_of_one(start, expected, count, tensor, flags):
    ranks = start(count, *flags, tensor=tensor, pipeline_parallel_size=3).ready()
    assert ranks.complete(PROMPTS) == expected
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert set(ranks.codes()) == {0}, ranks.said()


def test_two_hosts_give_the_tokens_of_one(start, expected, hosts):
    ranks = start(2, address=ADDRESSES[0], prefix=hosts.prefix).ready()
    body = (
        "import httpx, json, sys; print(json.dumps([c['text'] for c in httpx.post(sys.argv[1], "
        "json=json.loads(sys.argv[2]), timeout=60).json()['choices']]))"
    )
    ask = {"prompt": PROMPTS, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    words = [*hosts.prefix(0), sys.executable, "-c", body, ranks.url + "/v1/completions"]
    told = subprocess.run([*words, json.dumps(ask)], capture_output=True, text=True, timeout=90)
    assert json.loads(told.stdout) == expected, told.stderr
    cut_s = time.monotonic()
    hosts.cut()
    codes = ranks.codes()
    assert codes[0] == 7 and codes[1] in AGAIN, ranks.said()
    assert time.monotonic() - cut_s < 10


def _victim(ranks, rank):
    """Rank 0's part that others depend on is its engine's process."""
    return ranks.processes[1].pid if rank else _engine(ranks.processes[0].pid)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_lost_in_a_stream_ends_it_with_an_error_and_all_leave_with_7(start, rank, number):
    ranks = start(2).ready()
    victim = _victim(ranks, rank)
    with ranks.stream() as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(victim, number)
        lost_s = time.monotonic()
        rest = [line for line in lines if line]
    assert time.monotonic() - lost_s < 10
    assert '"error"' in rest[-2] and rest[-1] == "data: [DONE]", rest[-3:]
    if rank and number == signal.SIGSTOP:
        os.kill(victim, signal.SIGCONT)
    assert ranks.codes()[0] == 7, ranks.said()
    is_killed = rank and number == signal.SIGKILL
    assert ranks.codes()[1] in ({-9} if is_killed else AGAIN), ranks.said()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_it_builds_ends_the_start(start, rank, tmp_path):
    ranks = start(2, artifacts=str(tmp_path))
    eventually(lambda: "step.t" in ranks.said(), 60)
    os.kill(_victim(ranks, rank), signal.SIGKILL)
    lost_s = time.monotonic()
    codes = ranks.codes()
    assert time.monotonic() - lost_s < 10
    assert codes[0] == 7 and codes[1] in ({-9} if rank else AGAIN), ranks.said()
    assert "Traceback" not in ranks.said()


def _engine(front):
    path = f"/proc/{front}/task/{front}/children"
    with open(path) as file:
        return int(file.read().split()[0])


def test_ranks_with_other_options_are_refused_before_anything_is_built(start, tmp_path):
    folder = tmp_path / "artifacts"
    ranks = start(2, own={1: ["--max-model-len=64"]}, artifacts=str(folder))
    assert ranks.codes(60) == [2, 2], ranks.said()
    assert ranks.said().count("option max_model_len: 128 at rank 0, 64 at rank 1") == 2
    assert not folder.exists()
