"""Load and figures: when requests are due, what is measured from where, and what is printed."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import datetime

import numpy as np
import pytest
from tests.unit.client.fake import FakeServer, chunked, events, plain

from ranvier.bench.dataset import Sample
from ranvier.bench.load import Plan, Record, run_load, wait_for_server
from ranvier.bench.metrics import Wanted, per_second, summarise
from ranvier.bench.options import OutputOptions, TargetOptions, TrafficOptions
from ranvier.bench.report import block, describe, result_path, save
from ranvier.bench.traffic import schedule
from ranvier.client.http import parse_url
from ranvier.client.openai import Server
from ranvier.core.errors import ConfigError, ServerError

END = b"0\r\n\r\n"
USAGE = '{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3}}'
WHOLE = (
    chunked(*events('{"choices":[{"text":"a"}]}', '{"choices":[{"text":"b"}]}', USAGE, "[DONE]")),
    END,
)


def test_all_are_due_at_once_at_an_infinite_rate():
    assert schedule(TrafficOptions(), 3, 0) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", ["0.3", "1.0", "5", "inf"])
def test_a_rate_gives_its_mean_and_its_spread(burstiness):
    due = np.asarray(schedule(TrafficOptions(request_rate="4", burstiness=burstiness), 4000, 1))
    gaps = np.diff(due)
    assert (gaps >= 0).all() and due[-1] == pytest.approx(1000)
    shape = float(burstiness)
    spread = 0.0 if math.isinf(shape) else 1 / math.sqrt(shape)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.1, abs=1e-9)


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_goes_from_one_rate_to_the_other(strategy):
    ramp = {"ramp_up_strategy": strategy, "ramp_up_start_rps": 1, "ramp_up_end_rps": 10}
    gaps = np.diff(schedule(TrafficOptions(burstiness="inf", **ramp), 200, 0))
    assert gaps[0] == pytest.approx(1, rel=0.1) and gaps[-1] == pytest.approx(0.1)
    assert (np.diff(gaps) < 0).all()


@pytest.mark.parametrize(
    "options",
    [{"request_rate": "0"}, {"request_rate": "nan"}, {"request_rate": "fast"},
     {"burstiness": "-1"}, {"ramp_up_start_rps": 1.0}, {"ramp_up_strategy": "steep"},
     {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0},
     {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 2.0,
      "request_rate": "3"}],
)  # fmt: skip
def test_traffic_that_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError):
        TrafficOptions(**options)


def plan(server, due_s, **given):
    def body(sample):
        return {"model": "m", "prompt": sample.prompt, "max_tokens": sample.output_len}

    address = parse_url(server.url)
    return Plan(Server(address), "/v1/completions", body, due_s, is_shown=False, **given)


def load(server, due_s, **given):
    samples = [Sample([i, i], 2, 3) for i in range(len(due_s))]
    return asyncio.run(run_load(plan(server, due_s, **given), samples))


def test_requests_are_sent_when_due_and_read_to_their_end():
    with FakeServer(*WHOLE) as server:
        records, duration_s = load(server, [0.0, 0.1, 0.2])
        bodies = [json.loads(r.split(b"\r\n\r\n", 1)[1]) for r in server.requests]
    assert [body["prompt"] for body in bodies] == [[0, 0], [1, 1], [2, 2]]
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert b"\r\nX-Request-Id: bench-1\r\n" in server.requests[1]
    assert [(r.text, r.input_tokens, r.output_tokens, r.error) for r in records] == [
        ("ab", 4, 3, "")
    ] * 3
    starts = [r.start_s - records[0].start_s for r in records]
    assert starts == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    assert duration_s >= 0.2


def test_waiting_for_a_slot_counts_where_a_rate_is_asked_for():
    """No coordinated omission: the clock starts when the request was due."""
    with FakeServer(*WHOLE) as server:
        open_, _ = load(server, [0.0, 1e-9, 2e-9], concurrency_max=1)
        closed, _ = load(server, [0.0, 0.0, 0.0], concurrency_max=1)
    assert open_[2].start_s - open_[0].start_s < 1e-6
    assert open_[2].ttft_s > open_[2].queue_s > 0
    assert closed[2].start_s > closed[1].end_s > closed[1].start_s > closed[0].end_s
    assert closed[2].queue_s > closed[1].queue_s


def test_a_failed_request_is_told_and_does_not_stop_the_others():
    with FakeServer(plain(b'{"error":{"message":"full"}}', "503 X")) as server:
        records, duration_s = load(server, [0.0, 0.0])
    assert [r.error for r in records] == ["The server answered 503: full"] * 2
    result = summarise(records, duration_s, Wanted(OutputOptions()))
    assert (result["completed"], result["failed"], result["mean_ttft_ms"]) == (0, 2, 0.0)


def test_an_answer_without_text_is_a_failure():
    with FakeServer(chunked(*events(USAGE, "[DONE]")), END) as server:
        records, _ = load(server, [0.0])
    assert records[0].error == "The answer has no text."


def test_the_ready_check_gives_up():
    with FakeServer(plain(b"", "503 X")) as server, pytest.raises(ServerError, match="503"):
        asyncio.run(wait_for_server(plan(server, [0.0]), Sample([1], 1, 1), 0.0))


def record(start, pieces, tokens, error=""):
    return Record(
        Sample([1], 1, 1), start_s=start, piece_s=[start + p for p in pieces],
        end_s=start + (pieces[-1] if pieces else 0), input_tokens=10, output_tokens=tokens,
        error=error,
    )  # fmt: skip


RECORDS = [
    record(100.0, [0.5, 0.6, 0.8], 4), record(101.0, [1.5], 1), record(101.0, [], 0, "refused"),
]  # fmt: skip


def test_figures_by_hand():
    output = OutputOptions(
        percentile_metrics="ttft,tpot,itl,e2el", metric_percentiles="50,99.9",
        goodput=("ttft:1000", "e2el:900"),
    )  # fmt: skip
    result = summarise(RECORDS, 2.0, Wanted(output))
    assert (result["completed"], result["failed"]) == (2, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (20, 5)
    assert result["request_throughput"] == 1.0
    assert result["request_goodput"] == 0.5
    assert result["output_throughput"] == 2.5
    assert result["total_token_throughput"] == 12.5
    assert result["mean_ttft_ms"] == pytest.approx(1000)
    assert result["mean_tpot_ms"] == pytest.approx(100)
    assert result["mean_itl_ms"] == pytest.approx(150)
    assert result["p50_e2el_ms"] == pytest.approx(1150)
    assert "p99.9_itl_ms" in result and result["output_lens"] == [4, 1, 0]
    assert per_second(RECORDS[:2]) == ([3, 0, 1], [1, 1, 1])
    assert (result["max_output_tokens_per_s"], result["max_concurrent_requests"]) == (3.0, 1)


@pytest.mark.parametrize(
    "options",
    [{"percentile_metrics": "ttft,speed"}, {"metric_percentiles": "101"},
     {"metric_percentiles": "x"}, {"goodput": ("itl:5",)}, {"goodput": ("ttft",)},
     {"goodput": ("ttft:-1",)}],
)  # fmt: skip
def test_unknown_figures_are_refused(options):
    with pytest.raises(ConfigError):
        Wanted(OutputOptions(**options))


def test_the_block_reads_as_vllms():
    wanted = Wanted(OutputOptions())
    traffic = TrafficOptions(request_rate="2", max_concurrency=7)
    lines = block(summarise(RECORDS, 2.0, wanted), wanted, traffic).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == f"{'Successful requests:':<40} {'2':<10}"
    assert lines[3:5] == [
        f"{'Maximum request concurrency:':<40} {'7':<10}",
        f"{'Request rate configured (RPS):':<40} {'2.00':<10}",
    ]
    assert f"{'Output token throughput (tok/s):':<40} {'2.50':<10}" in lines
    assert "---------------Time to First Token----------------" in lines
    assert f"{'P99 ITL (ms):':<40} {'199.00':<10}" in lines
    assert lines[-1] == "=" * 50


def test_the_file_has_vllms_name_and_keys(tmp_path):
    output = OutputOptions(save_result=True, result_dir=str(tmp_path), metadata=("machine=x",))
    traffic = TrafficOptions(max_concurrency=3)
    names = {"model_id": "org/model", "tokenizer_id": "t", "num_prompts": 3}
    now = datetime(2026, 1, 2, 3, 4, 5)
    run = describe(TargetOptions(), traffic, output, names, now)
    path = result_path(output, traffic, run)
    assert path.name == "openai-infqps-concurrency3-model-20260102-030405.json"
    result = summarise(RECORDS, 2.0, Wanted(output))
    save(path, output, run, result)
    kept = json.loads(path.read_text())
    assert kept["date"] == "20260102-030405" and kept["machine"] == "x"
    assert kept["request_rate"] == "inf" and "ttfts" not in kept and "p99_ttft_ms" in kept
    save(path, OutputOptions(save_detailed=True, append_result=True), run, result)
    assert [len(json.loads(x).get("ttfts", [])) for x in path.read_text().splitlines()] == [0, 3]
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        describe(TargetOptions(), traffic, OutputOptions(metadata=("x",)), names, now)
