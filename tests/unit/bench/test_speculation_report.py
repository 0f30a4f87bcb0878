"""The report of guessing: counters of a page or an engine, vLLM's figures, their definition."""

from __future__ import annotations

import pytest

from ranvier.bench.speculation import (
    DraftCounts,
    counts_of_stats,
    read_counts,
    report_lines,
    speculation_figures,
)
from ranvier.core.request import EngineStats

PAGE = """
# HELP vllm:spec_decode_num_drafts_total Drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7e9
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 30.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 15.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 9.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 1.0
"""
COUNTS = DraftCounts(10, 30, 15, (9, 5, 1))


def test_a_page_and_an_engine_say_the_same():
    assert read_counts(PAGE) == COUNTS
    assert read_counts("vllm:prompt_tokens_total 4") == DraftCounts()
    stats = EngineStats(
        drafts=10, draft_tokens=30, accepted_tokens=15, accepted_per_position=[9, 5, 1]
    )
    assert counts_of_stats(stats) == COUNTS


def test_engines_of_one_server_are_added_up():
    both = read_counts(PAGE + PAGE.replace('engine="0"', 'engine="1"'))
    assert both == DraftCounts(20, 60, 30, (18, 10, 2))


def test_figures_are_of_the_run_alone():
    found = speculation_figures(COUNTS.since(DraftCounts(2, 6, 3, (2, 1, 0))))
    assert found["spec_decode_num_drafts"] == 8
    assert found["spec_decode_acceptance_length"] == pytest.approx(1 + 12 / 8)
    assert found["spec_decode_acceptance_rate"] == pytest.approx(50)
    assert found["spec_decode_per_position_acceptance_rates"] == [7 / 8, 4 / 8, 1 / 8]
    assert COUNTS.since(DraftCounts()) == COUNTS


def test_the_report_tells_how_it_counts():
    text = "\n".join(report_lines(COUNTS))
    assert "Acceptance length:                       2.50" in text
    assert "Acceptance at position 0 (%):            90.00" in text
    assert "1 + accepted / drafts" in text
    assert report_lines(DraftCounts()) == ["Speculative decoding: nothing was guessed."]
    assert speculation_figures(DraftCounts()) == {}
