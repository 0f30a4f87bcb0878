"""`ranvier bench` as a user runs it: tiny model, in process, against a server, and its start."""

from __future__ import annotations

import json

import pytest

from ranvier.bench.dataset import Sample
from ranvier.bench.load import Record
from ranvier.bench.offline import draw_adapters
from ranvier.bench.plot import draw
from ranvier.cli.main import main
from tests.adapters import LLAMA, modules_of, random_tensors, save_adapter
from tests.unit.client.fake import FakeServer, chunked, events

END = b"0\r\n\r\n"
USAGE = '{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}'


@pytest.fixture
def engine_words(tiny_options):
    """The command-line form of the options that the tiny model is built under."""
    words = [tiny_options["model"]]
    for name, value in tiny_options.items():
        if name != "model":
            words += ["--" + name.replace("_", "-"), str(value)]
    return words


def test_latency_prints_and_writes_vllms_figures(engine_words, tmp_path, capsys):
    path = tmp_path / "latency.json"
    sizes = ["--input-len", "5", "--output-len", "3", "--batch-size", "2", "--num-iters", "2"]
    words = ["bench", "latency", *engine_words, *sizes, "--num-iters-warmup", "1"]
    assert main([*words, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result) == {"avg_latency", "latencies", "percentiles"}
    assert len(result["latencies"]) == 2 and result["percentiles"]["99"] > 0
    assert f"Avg latency: {result['avg_latency']} seconds" in capsys.readouterr().out


def test_throughput_counts_every_token(engine_words, tmp_path, capsys):
    path = tmp_path / "throughput.json"
    sizes = ["--random-input-len", "9", "--random-output-len", "4", "--num-prompts", "6"]
    words = ["bench", "throughput", *engine_words, *sizes, "--num-warmups", "2"]
    assert main([*words, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["num_requests"], result["total_num_tokens"]) == (6, 6 * 13)
    rate = result["total_num_tokens"] / result["elapsed_time"]
    assert result["tokens_per_second"] == pytest.approx(rate)
    assert "Total num output tokens:  24" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_throughput_with_adapters_gives_each_request_one(engine_words, tmp_path, count):
    shapes = {"rank": 4, "seed": 1}
    folders = [
        str(save_adapter(tmp_path / f"a{i}", random_tensors(modules_of(LLAMA), **shapes), r=4))
        for i in range(count)
    ]
    path = tmp_path / "throughput.json"
    sizes = ["--random-input-len", "9", "--random-output-len", "4", "--num-prompts", "12"]
    lora = ["--enable-lora", "--max-loras", "3", "--lora-path", *folders]
    words = ["bench", "throughput", *engine_words, *sizes, *lora, "--num-warmups", "2"]
    assert main([*words, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["num_requests"], result["total_num_tokens"]) == (12, 12 * 13)


def test_adapters_of_a_bench_are_drawn_by_the_seed():
    one = draw_adapters(["x"], 40, slots=3, seed=5)
    assert {r.lora_path for r in one} == {"x"} and len({r.lora_name for r in one}) == 3
    assert (
        one
        == draw_adapters(["x"], 40, slots=3, seed=5)
        != draw_adapters(["x"], 40, slots=3, seed=6)
    )
    assert {r.lora_path for r in draw_adapters(["x", "y"], 40, slots=3, seed=5)} == {"x", "y"}
    assert draw_adapters([], 40, slots=3, seed=5) is None


def test_throughput_reports_what_guessing_yielded(engine_words, tmp_path, capsys):
    path = tmp_path / "throughput.json"
    lengths = ["--random-input-len", "30", "--random-output-len", "60", "--num-prompts", "3"]
    words = ["bench", "throughput", *engine_words, *lengths, "--spec-report"]
    method = ["--speculative-config.method", "ngram", "--speculative-config.prompt_lookup_min", "1"]
    assert main([*words, *method, "--output-json", str(path)]) == 0
    result, out = json.loads(path.read_text()), capsys.readouterr().out
    assert result["total_num_tokens"] == 3 * 90
    if result.get("spec_decode_num_drafts"):  # the policy decides
        assert result["spec_decode_acceptance_length"] >= 1
        assert "Acceptance length" in out
    else:
        assert "nothing was guessed" in out


def test_serve_measures_a_server_and_draws(tiny_model, tmp_path, capsys):
    pieces = events('{"choices":[{"text":"a"}]}', '{"choices":[{"text":"b"}]}', USAGE, "[DONE]")
    with FakeServer(chunked(*pieces), END) as server:
        words = [
            "bench", "serve", "--base-url", server.url, "--model", str(tiny_model),
            "--served-model-name", "tiny", "--num-prompts", "4", "--input-len", "6",
            "--output-len", "2", "--request-rate", "200", "--temperature", "0", "--disable-tqdm",
            "--extra-body.user", "me", "--header", "X-A=1", "--plot", str(tmp_path / "run.png"),
            "--save-result", "--result-dir", str(tmp_path), "--num-warmups", "1",
        ]  # fmt: skip
        assert main(words) == 0
        body = json.loads(server.requests[-1].split(b"\r\n\r\n", 1)[1])
        assert len(server.requests) == 5 and b"\r\nX-A: 1\r\n" in server.requests[0]
    assert len(body.pop("prompt")) == 6
    assert body == {
        "model": "tiny", "max_tokens": 2, "temperature": 0.0, "ignore_eos": True, "user": "me",
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert "Successful requests:                     4" in capsys.readouterr().out
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    (saved,) = tmp_path.glob("openai-200.0qps-*.json")
    assert json.loads(saved.read_text())["total_output_tokens"] == 8


@pytest.mark.parametrize("how", ["random", "round-robin"])
def test_requests_are_for_the_adapters_that_are_named(tiny_model, how):
    pieces = events('{"choices":[{"text":"a"}]}', USAGE, "[DONE]")
    asked = []
    for _ in range(2):
        with FakeServer(chunked(*pieces), END) as server:
            words = [
                "bench", "serve", "--base-url", server.url, "--model", str(tiny_model),
                "--num-prompts", "9", "--input-len", "4", "--output-len", "1", "--disable-tqdm",
                "--max-concurrency", "1", "--lora-modules", "a", "b", "c", "--lora-assignment", how,
            ]  # fmt: skip
            assert main(words) == 0
            bodies = [json.loads(r.split(b"\r\n\r\n", 1)[1]) for r in server.requests]
        asked.append([body["model"] for body in bodies])
    assert asked[0] == asked[1], "equal for equal seeds"
    assert set(asked[0]) <= set("abc") and len(asked[0]) == 9
    assert (asked[0] == ["a", "b", "c"] * 3) == (how == "round-robin")


def test_serve_exits_with_one_when_nothing_succeeds(tiny_model):
    with FakeServer(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n") as server:
        words = ["bench", "serve", "--base-url", server.url, "--model", str(tiny_model)]
        assert main([*words, "--num-prompts", "2", "--disable-tqdm"]) == 1


@pytest.mark.timeout(600)
def test_startup_starts_servers_cold_and_warm(engine_words, tmp_path, capsys):
    path = tmp_path / "startup.json"
    at = engine_words.index("--artifacts")
    words = ["bench", "startup", *engine_words[:at], *engine_words[at + 2 :]]
    iterations = ["--num-iters-cold", "1", "--num_iters_warm", "1"]
    assert main([*words, *iterations, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text())
    cold, warm = result["avg_cold_startup_time"], result["avg_warm_startup_time"]
    assert warm < cold and len(result["warm_startup_times"]) == 1
    assert sum(result["cold_phases"].values()) == pytest.approx(cold, rel=0.5)
    assert 0 < result["avg_cold_compilation_time"] < cold
    assert "STARTUP TIME BENCHMARK RESULTS" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_told_with_its_last_words(engine_words, capsys):
    words = ["bench", "startup", *engine_words[:1], "--max-model-len", "100k"]
    assert main([*words, "--num-iters-cold", "1"]) != 0
    assert "above the model's own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--probe-request-rate", "1"], "no probe requests"),
        (["serve", "--lora_assignment=x"], "random, round-robin"),
        (["throughput", "m", "--lora-path", "x"], "Add --enable-lora"),
        (["throughput", "m", "--async-engine"], "offline engine"),
        (["serve", "--num-prompt", "3"], "Did you mean --num-prompts?"),
        (["serve", "--backend", "tgi"], "known: vllm, openai, openai-chat"),
        (["serve", "--port", "1"], "No server answers"),
        (["serve", "--model", "nowhere", "--port", "1"], "--tokenizer"),
        (["serve", "--plot", "x.pdf"], "must end in .png"),
        (["serve", "--plot", "/nowhere/x.png"], "folder"),
        (["serve", "--header", "x", "--model", "m"], "NAME=VALUE"),
        (["startup", "m", "--artifacts", "x"], "no --artifacts"),
        (["sweep"], "invalid choice"),
    ],
)
def test_what_is_wrong_is_told(words, said, capsys):
    assert main(["bench", *words]) != 0
    assert said in capsys.readouterr().err


def test_a_picture_of_nothing_is_still_a_picture(tmp_path):
    draw(tmp_path / "none.png", [Record(Sample("x", 1, 1), error="refused")], "nothing")
    assert (tmp_path / "none.png").stat().st_size > 1000
