"""The memory fit reproduces published facts and numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ranvier.build.lora.form import adapter_form
from ranvier.build.numbers import model_numbers
from ranvier.build.programs import Sizes
from ranvier.core.buckets import BucketSet
from ranvier.core.errors import ConfigError
from ranvier.models.table import resolve
from ranvier.targets.neuron.instances import CHIPS, GIB, INSTANCES, find_instance
from ranvier.targets.neuron.memory import degrees, fit, gqa_rule, largest_lengths, slot_bytes
from ranvier.targets.numbers import MemorySizes
from ranvier.weights.lora.form import stack_bytes

CONFIGS = Path(__file__).parents[2] / "data/configs"
SIZES = MemorySizes(
    max_model_len=4096, max_num_seqs=4, max_num_batched_tokens=1024, program_count=12
)


def numbers(name):
    config = json.loads((CONFIGS / name / "config.json").read_text())
    return model_numbers(resolve(config), name)


LLAMA_70B, LLAMA_8B = numbers("llama-3.3-70b"), numbers("llama-3.1-8b")


def test_parameter_counts_are_the_published_ones():
    assert LLAMA_70B.parameters == 70_553_706_496
    assert LLAMA_8B.parameters == 8_030_261_248


def test_llama_70b_fits_trn2_48xlarge_at_64():
    report = fit(LLAMA_70B, SIZES, find_instance("trn2.48xlarge"), 64)
    assert report.fits
    assert report.limit_bytes == 24 * GIB
    # By hand: 8192 x 128256 x 2 B / 64 and 80 layers of 3 x 8192 x 28672 x 2 B / 64.
    assert report.bytes_of("weights: embedding") == 8192 * 128256 * 2 // 64
    assert report.bytes_of("weights: mlp") == 80 * 3 * 8192 * 28672 * 2 // 64
    # K and V weights of 8 heads are stored 64 times over: one head a core.
    attention = 80 * 8192 * 128 * 2 * (2 * 1 + 2 * 1)
    assert report.bytes_of("weights: attention") == attention
    # 4 x 128 blocks + the garbage block, 32 tokens, one KV head a core.
    assert report.bytes_of("kv cache") == 2 * 80 * 513 * 32 * 1 * 128 * 2


def test_llama_70b_does_not_fit_inf2_xlarge_and_says_why():
    report = fit(LLAMA_70B, SIZES, find_instance("inf2.xlarge"), 2)
    assert not report.fits
    (problem,) = report.problems
    assert "the weights alone take 65.7 GiB" in problem
    assert "a logical core of inf2.xlarge has 16.0 GiB" in problem


@pytest.mark.parametrize("tensor_parallel", [8, 32])
def test_llama_8b_fits_trn2_48xlarge(tensor_parallel):
    report = fit(LLAMA_8B, SIZES, find_instance("trn2.48xlarge"), tensor_parallel)
    assert report.fits
    assert report.total_bytes == sum(row.bytes for row in report.rows) <= 24 * GIB


def test_cache_that_is_too_large_names_the_cache():
    sizes = dataclasses.replace(SIZES, max_model_len=131072, max_num_seqs=64)
    report = fit(LLAMA_8B, sizes, find_instance("trn2.48xlarge"), 8)
    assert "the largest part is kv cache" in report.problems[0]


@pytest.mark.parametrize(
    ("heads", "kv", "t", "stored", "case"),
    [
        (32, 32, 8, (32, 32), "mha"),
        (32, 32, 24, (48, 48), "mha"),
        (32, 8, 4, (32, 8), "sharded"),
        (32, 8, 8, (32, 8), "sharded"),
        (64, 8, 64, (64, 64), "replicated"),
        (32, 8, 24, (48, 24), "replicated"),
        (28, 4, 3, (30, 30), "converted to mha"),
        (32, 8, 12, (36, 36), "converted to mha"),
    ],
)
def test_gqa_rule(heads, kv, t, stored, case):
    rule = gqa_rule(heads, kv, t)
    assert (rule.query_heads, rule.kv_heads) == stored
    assert rule.case == case


@pytest.mark.parametrize("cores", [1, 3, 8, 16])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.3-70b"])
def test_slots_are_counted_as_the_build_makes_them(model, cores):
    fields = json.loads((CONFIGS / model / "config.json").read_text())
    spec = resolve(fields)
    sizes = Sizes(
        dtype="bfloat16", kernels="reference", max_model_len=64, max_num_seqs=4, block_tokens=32,
        block_count=9, kv_layout="block", buckets=BucketSet(tokens=(8,)), logprobs_max=1,
        edits_max=4, adapter_slots=3, adapter_rank_max=16, tensor_parallel=cores,
    )  # fmt: skip
    counted = 3 * slot_bytes(model_numbers(spec, model), 16, "bfloat16", cores)
    assert counted == stack_bytes(adapter_form(spec, sizes))


def test_lora_and_draft_are_counted():
    instance = find_instance("trn2.48xlarge")
    plain = fit(LLAMA_70B, SIZES, instance, 32)
    rich = dataclasses.replace(SIZES, lora_slots=4, draft=LLAMA_8B)
    more = fit(LLAMA_70B, rich, instance, 32)
    alone = fit(LLAMA_8B, SIZES, instance, 32)
    assert more.bytes_of("draft weights") == alone.bytes_of("weights")
    assert more.bytes_of("draft kv") == alone.bytes_of("kv cache")
    lora = 4 * slot_bytes(LLAMA_70B, 16, "bfloat16", 32)
    assert more.bytes_of("lora") == lora
    assert more.total_bytes == plain.total_bytes + sum(
        more.bytes_of(kind) for kind in ("draft", "lora")
    )


def test_int8_weights_take_half():
    instance = find_instance("trn2.48xlarge")
    half = fit(LLAMA_8B, dataclasses.replace(SIZES, dtype="int8"), instance, 8)
    whole = fit(LLAMA_8B, SIZES, instance, 8)
    assert half.bytes_of("weights: mlp") * 2 == whole.bytes_of("weights: mlp")
    assert half.bytes_of("weights: norms") == whole.bytes_of("weights: norms")


def test_degrees_name_what_they_cost_or_why_they_are_none():
    table = {d.size: d for d in degrees(LLAMA_8B, find_instance("inf2.48xlarge"))}
    assert all(d.is_legal for d in table.values())
    assert table[8].note == ""
    assert "query heads are padded from 32 to 36" in table[12].note
    assert "8 KV heads become 36, one a query head" in table[12].note
    assert "each KV head is stored 3 times" in table[24].note
    small = {d.size: d for d in degrees(LLAMA_8B, find_instance("inf2.xlarge"))}
    assert "exceeds the 2 logical cores" in small[4].problem
    wide = {d.size: d for d in degrees(LLAMA_70B, find_instance("trn2.48xlarge"))}
    assert wide[64].is_legal
    assert wide[64].note.startswith("each KV head is stored 8 times; the KV cache")


def test_padding_is_counted():
    """TP 24 on inf2, as AWS benchmarks it: 72 query heads, 24 KV heads, an MLP of 24 x 1195."""
    report = fit(LLAMA_70B, SIZES, find_instance("inf2.48xlarge"), 24)
    assert report.fits
    attention = 80 * 8192 * 128 * 2 * (2 * 3 + 2 * 1)
    assert report.bytes_of("weights: attention") == attention
    assert report.bytes_of("weights: mlp") == pytest.approx(80 * 3 * 8192 * 1195 * 2, abs=2)
    assert report.bytes_of("kv cache") == 2 * 80 * 513 * 32 * 1 * 128 * 2


def test_illegal_degree_is_a_problem_of_the_report():
    report = fit(LLAMA_8B, SIZES, find_instance("trn2.48xlarge"), 3)
    assert "not among the degrees published for Trainium2" in report.problems[0]


def test_largest_length_fits_and_one_block_more_does_not():
    instance = find_instance("inf2.xlarge")
    found = largest_lengths(LLAMA_8B, SIZES, instance, 2)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for seqs in (1, 4):
        length = found[seqs]
        assert 0 < length < LLAMA_8B.model_len_max

        def tried(length, seqs=seqs):
            sizes = dataclasses.replace(SIZES, max_model_len=length, max_num_seqs=seqs)
            return fit(LLAMA_8B, sizes, instance, 2).fits

        assert tried(length)
        assert not tried(length + 32)
    assert set(largest_lengths(LLAMA_70B, SIZES, instance, 2).values()) == {0}


def test_wrong_sizes_are_refused():
    instance = find_instance("inf2.xlarge")
    with pytest.raises(ConfigError, match="tensor_parallel_size must be at least 1, is 0"):
        fit(LLAMA_8B, SIZES, instance, 0)
    with pytest.raises(ConfigError, match="logical_nc_config=2 is not possible on inf2.xlarge"):
        fit(LLAMA_8B, SIZES, instance, 2, logical_core_config=2)
    with pytest.raises(ConfigError, match="Unknown dtype 'bf61'"):
        fit(LLAMA_8B, dataclasses.replace(SIZES, dtype="bf61"), instance, 2)
    with pytest.raises(ConfigError, match="max_num_seqs must be at least 1, is 0"):
        fit(LLAMA_8B, dataclasses.replace(SIZES, max_num_seqs=0), instance, 2)


def test_catalogue_agrees_with_the_published_totals():
    hbm = {name: instance.hbm_bytes // GIB for name, instance in INSTANCES.items()}
    assert hbm["inf2.24xlarge"] == 192
    assert hbm["inf2.48xlarge"] == 384
    assert hbm["trn1.32xlarge"] == 512
    assert hbm["trn2.48xlarge"] == 1536
    assert hbm["trn3-ultraserver-gen2"] == 20736
    cores = {name: instance.logical_cores() for name, instance in INSTANCES.items()}
    assert (cores["inf2.xlarge"], cores["inf2.48xlarge"], cores["trn1.32xlarge"]) == (2, 24, 32)
    assert cores["trn2.48xlarge"] == 64
    assert INSTANCES["trn2.48xlarge"].logical_cores(1) == 128
    assert INSTANCES["trn2.48xlarge"].core_bytes(1) == 12 * GIB
    assert {instance.chip.target for instance in INSTANCES.values()} == set(CHIPS)


def test_unknown_instance_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean trn2\.48xlarge"):
        find_instance("trn2.48xl")
