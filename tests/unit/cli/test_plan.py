"""`ranvier plan`: every instance or one, as text, JSON and a picture; wrong input is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ranvier.cli.main import main

CONFIGS = Path(__file__).parents[2] / "data/configs"
LLAMA_70B, LLAMA_8B = str(CONFIGS / "llama-3.3-70b"), str(CONFIGS / "llama-3.1-8b/config.json")


def planned(capsys, *arguments):
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def failed(capsys, *arguments):
    assert main(["plan", *arguments]) == 2
    return capsys.readouterr().err


def test_70b_fits_trn2_48xlarge_at_64(capsys):
    code, plan = planned(capsys, LLAMA_70B, "--instance", "trn2.48xlarge", "-tp", "64")
    assert code == 0
    assert plan["fits"]
    assert plan["problems"] == []
    assert plan["memory"]["total_bytes"] == sum(row["bytes"] for row in plan["memory"]["rows"])
    assert plan["memory"]["limit_bytes"] == 24 * 2**30
    assert {row["kind"] for row in plan["memory"]["rows"]} >= {"weights: mlp", "kv cache"}
    assert plan["buckets"]["program_count"] <= 32


def test_405b_is_answered_at_64(capsys):
    words = (str(CONFIGS / "llama-3.1-405b"), "--instance", "trn2.48xlarge", "-tp", "64")
    code, plan = planned(capsys, *words)
    assert (code, plan["fits"]) == (0, True)
    weights = sum(r["bytes"] for r in plan["memory"]["rows"] if r["kind"].startswith("weights"))
    # 405.9e9 parameters in bfloat16 over 64 cores, and what each core keeps of its own.
    assert 2 * 405.8e9 / 64 <= weights < 1.1 * 2 * 405.9e9 / 64
    code, plan = planned(capsys, *words[:2], "trn1.32xlarge", "-tp", "32")
    assert (code, plan["fits"]) == (5, False)
    assert plan["problems"]


def test_70b_does_not_fit_inf2_xlarge(capsys):
    code, plan = planned(capsys, LLAMA_70B, "--instance", "inf2.xlarge")
    assert code == 5
    assert not plan["fits"]
    assert "the weights alone take 65.7 GiB" in plan["problems"][0]


def test_all_instances_come_with_those_that_fit_first(capsys):
    code, document = planned(capsys, LLAMA_70B)
    assert code == 0
    fits = [plan["fits"] for plan in document["instances"]]
    assert fits == sorted(fits, reverse=True)
    assert document["instances"][0]["instance"] == "inf2.48xlarge"


def test_prices_decide_the_order(capsys, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text('{"trn2.48xlarge": 1.5, "trn1.32xlarge": 9}')
    _, document = planned(capsys, LLAMA_70B, "--prices", str(prices))
    names = [plan["instance"] for plan in document["instances"][:2]]
    assert names == ["trn2.48xlarge", "trn1.32xlarge"]


def test_decode_floor_is_the_formula(capsys):
    _, plan = planned(capsys, LLAMA_8B, "--instance", "trn2.48xlarge", "-tp", "8")
    rows = {row["kind"]: row["bytes"] for row in plan["memory"]["rows"]}
    read = sum(size for kind, size in rows.items() if kind.startswith("weights"))
    read -= rows["weights: embedding"]
    read += 1 * 4096 * 2 * 32 * 1 * 128 * 2  # one row at the whole context, one KV head a core
    entry = next(e for e in plan["roofline"]["decode"] if (e["rows"], e["tokens"]) == (1, 4096))
    assert entry["ms"] == pytest.approx(read / (2.9e12 / 4) * 1e3)
    assert entry["bound"] == "memory"
    prefill = next(e for e in plan["roofline"]["prefill"] if e["tokens"] == 1024)
    weights = 8_030_261_248 - 128256 * 4096
    work = 1024 * 2 * weights + 2 * 32 * 32 * 128 * 1024**2
    assert prefill["ms"] == pytest.approx(work / 8 / (667e12 / 4) * 1e3)


def test_trace_changes_the_buckets(capsys, tmp_path):
    trace = tmp_path / "lengths.jsonl"
    trace.write_text('{"prompt_tokens": 100, "output_tokens": 20}\n' * 50)
    _, plan = planned(capsys, LLAMA_8B, "--instance", "trn2.48xlarge", "--trace", str(trace))
    assert 112 in plan["buckets"]["prefill_tokens"]
    _, other = planned(capsys, LLAMA_8B, "--instance", "trn2.48xlarge")
    assert plan["buckets"] != other["buckets"]


def test_draft_and_adapters_are_in_the_table(capsys):
    extra = ["--draft", LLAMA_8B, "--max-loras", "4", "--num-speculative-tokens", "5"]
    _, plan = planned(capsys, LLAMA_70B, "--instance", "trn2.48xlarge", "-tp", "32", *extra)
    kinds = {row["kind"] for row in plan["memory"]["rows"]}
    assert {"lora slots", "draft weights", "draft kv cache"} <= kinds


def test_adapters_in_host_memory_are_counted(capsys):
    where, lora = ["--instance", "trn2.48xlarge", "-tp", "8"], ["--max-loras", "8"]
    _, plain = planned(capsys, LLAMA_8B, *where)
    assert plain["host_adapters"] is None
    _, plan = planned(capsys, LLAMA_8B, *where, *lora)
    mlp, q, kv = 14336, 4096, 1024
    each = 32 * 16 * (7 * 4096 + 2 * q + 2 * kv + 3 * mlp) * 2
    assert plan["host_adapters"]["bytes"] == 32 * each
    _, plan = planned(capsys, LLAMA_8B, *where, *lora, "--max-cpu-loras", "300")
    assert plan["host_adapters"]["bytes"] == 8 * 2**30
    _, plan = planned(capsys, LLAMA_8B, *where, *lora, "--max-cpu-lora-bytes", "1G")
    assert plan["host_adapters"]["bytes"] == 2**30
    assert main(["plan", LLAMA_8B, *where, *lora, "--max-cpu-loras", "4"]) != 0
    assert "less than max_loras=8" in capsys.readouterr().err


def test_slots_and_host_adapters_are_memory_of_this_machine(capsys):
    model = str(CONFIGS.parents[1] / "parity/goldens/llama")
    _, plain = planned(capsys, model, "--instance", "cpu")
    _, plan = planned(capsys, model, "--instance", "cpu", "--max-loras", "4", "-dp", "2")
    rows = {row["kind"]: row["bytes"] for row in plan["memory"]["rows"]}
    assert rows["adapters on the host"] == 32 / 4 * rows["lora slots"] > 0
    assert "lora slots" not in {row["kind"] for row in plain["memory"]["rows"]}


def test_blocks_are_those_that_serving_makes(capsys):
    _, plan = planned(capsys, LLAMA_8B, "--instance", "trn2.48xlarge", "-tp", "8")
    rows = {row["kind"]: row["formula"] for row in plan["memory"]["rows"]}
    assert "x 2049 blocks x" in rows["kv cache"]
    given = ["--num-gpu-blocks-override", "500"]
    _, plan = planned(capsys, LLAMA_8B, "--instance", "trn2.48xlarge", "-tp", "8", *given)
    rows = {row["kind"]: row["formula"] for row in plan["memory"]["rows"]}
    assert "x 501 blocks x" in rows["kv cache"]


def test_text_names_formula_and_says_what_is_unproven(capsys):
    assert main(["plan", LLAMA_8B, "--instance", "trn2.48xlarge", "-tp", "8"]) == 0
    text = capsys.readouterr().out
    assert "2 x 32 layers x 2049 blocks x 32 tokens x 1 heads x 128 x 2 B" in text
    assert "nothing here was measured on Neuron hardware" in text


def test_this_machine(capsys):
    code, plan = planned(
        capsys, str(CONFIGS.parents[1] / "parity/goldens/llama"), "--instance", "cpu"
    )
    assert code == 0
    assert plan["target"] == "cpu"
    assert plan["roofline"]["bandwidth_bytes_s"] > 0
    assert plan["buckets"]["tokens"]


def rows_of(plan):
    return {row["kind"]: row["bytes"] for row in plan["memory"]["rows"]}


def test_ranks_of_this_machine_share_its_memory(capsys):
    golden = str(CONFIGS.parents[1] / "parity/goldens/llama")
    plans = {}
    for name, axes in (("one", []), ("two", ["-tp", "2"]), ("twice", ["-dp", "2"]),
                       ("stages", ["-pp", "3"])):  # fmt: skip
        code, plans[name] = planned(capsys, golden, "--instance", "cpu", *axes)
        assert code == 0
    one, two, twice, stages = (rows_of(plans[name]) for name in plans)
    assert two["weights: mlp"] == one["weights: mlp"] == stages["weights: mlp"]
    assert two["kv cache"] == one["kv cache"] == stages["kv cache"]
    assert twice["weights: mlp"] == 2 * one["weights: mlp"]
    assert twice["kv cache"] == 2 * one["kv cache"]
    assert plans["one"]["collectives"]["programs"] == []
    assert plans["twice"]["collectives"]["programs"] == []
    assert plans["two"]["collectives"]["programs"]
    code, plan = planned(capsys, golden, "--instance", "cpu", "-pp", "2")
    assert code == 5
    assert "does not divide the model's 3 layers; possible are 1, 3" in plan["problems"][0]


LLAMA_405B = str(CONFIGS / "llama-3.1-405b")


@pytest.mark.parametrize("axes", [("-tp", "64", "-pp", "2"), ("-tp", "128")])
def test_405b_over_two_hosts(capsys, axes):
    words = (LLAMA_405B, "--instance", "trn2.48xlarge", *axes)
    code, plan = planned(capsys, *words, "--nnodes", "2")
    assert (code, plan["fits"], plan["nnodes"]) == (0, True, 2)
    weights = sum(size for kind, size in rows_of(plan).items() if kind.startswith("weights"))
    # K and V weights are stored 8 or 16 times over: one head a core.
    assert 2 * 405.8e9 / 128 <= weights < 1.2 * 2 * 405.9e9 / 128
    code, plan = planned(capsys, *words)
    assert (code, plan["fits"]) == (5, False)
    assert "have 64" in plan["problems"][0] or "exceeds the 64" in plan["problems"][0]


@pytest.mark.parametrize(("axes", "problem"), [
    (("-pp", "4", "-tp", "16"), "does not divide the model's 126 layers; possible are 1, 2, 3, 6"),
    (("-dp", "2", "--nnodes", "2"), "several engines or one engine over several hosts"),
    (("-tp", "64", "-dp", "2"), "take 128 logical cores; 1 x trn2.48xlarge have 64"),
    (("-tp", "8", "--nnodes", "3"), "not shared evenly by nnodes=3"),
    (("-tp", "48", "--nnodes", "4"), "not among the degrees published"),
])  # fmt: skip
def test_axes_that_cannot_be_are_told(capsys, axes, problem):
    code, plan = planned(capsys, LLAMA_405B, "--instance", "trn2.48xlarge", *axes)
    assert code == 5
    assert problem in " ".join(plan["problems"])


def test_collectives_are_printed_by_program_and_kind(capsys):
    words = [LLAMA_8B, "--instance", "trn2.48xlarge", "-tp", "8", "--sequence-parallel"]
    assert main(["plan", *words]) == 0
    text = capsys.readouterr().out
    assert "collectives: MiB sent" in text
    assert "reduce-scatter" in text
    assert "prefill.t1024" in text


def test_plot_draws_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.png"
    assert main(["plan", LLAMA_8B, "--plot", str(picture)]) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "can't be written" in failed(capsys, LLAMA_8B, "--plot", str(tmp_path / "no/plan.png"))


def test_plot_without_matplotlib_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'ranvier[bench]'" in failed(capsys, LLAMA_8B, "--plot", "plan.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance", "trn2.48xl"], "Did you mean trn2.48xlarge"),
        (["--max-model-len", "200000"], "above the model's own 131072"),
        (["--dtype", "int9"], "Unknown dtype 'int9'"),
        (["--kv-cache-dtype", "int9"], "Unknown dtype 'int9'"),
        (["--instance", "inf2.xlarge", "--logical-nc-config", "2"], "is not possible on inf2"),
        (["--trace", "/nowhere/lengths.jsonl"], "can't be read"),
        (["--prices", __file__], "must be a JSON object"),
        (["--programs-max", "1"], "The program budget is 1"),
        (["--instance", "trn2.48xlarge", "--max-num-seqs", "0"], "max_num_seqs"),
        (["--instance", "cpu", "-tp", "0"], "tensor_parallel_size must be at least 1"),
        (["--instance", "cpu", "--nnodes", "2"], "this is one machine"),
        (["-pp", "0"], "pipeline_parallel_size must be at least 1, is 0"),
        (["-dp", "-1"], "data_parallel_size must be at least 1, is -1"),
        (["--instnce", "cpu"], "Did you mean --instance"),
    ],
)
def test_wrong_input_is_named(capsys, arguments, message):
    assert message in failed(capsys, LLAMA_8B, *arguments)


def test_unsupported_architecture_is_named(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["DbrxForCausalLM"]}')
    assert main(["plan", str(tmp_path)]) == 3
    assert "DbrxForCausalLM is not supported" in capsys.readouterr().err
