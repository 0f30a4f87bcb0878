"""Codes in the compiler's and the runtime's output are found and explained."""

from __future__ import annotations

from ranvier.targets.neuron.errors import COMPILER, RUNTIME, explain


def test_compiler_code_is_explained_once():
    log = "ERROR [NCC_EVRF001] op sort\nERROR: NCC_EVRF001 again\nNCC_EOOM002: too large"
    first, second = explain(log)
    assert first.startswith("EVRF001: An operator")
    assert second.startswith("EOOM002: Inputs, outputs")


def test_killed_compiler_is_explained():
    (line,) = explain("USER 26191 [neuronxcc.driver]: [F137] neuronx-cc was forcibly killed")
    assert "the host ran out of memory" in line
    assert "'Killed'" in explain("Killed")[0]


def test_runtime_status_is_explained():
    (line,) = explain("nrt_tensor_allocate status=4")
    assert line.startswith("NRT_RESOURCE: An allocation failed")
    assert "holds the core" in explain("NRT_STATUS: 1005")[0]


def test_unknown_codes_are_left_alone():
    assert explain("NCC_XXXX999 [0001] status=200 fine") == []


def test_no_code_stands_twice():
    for table in (COMPILER, RUNTIME):
        codes = [code for row in table for code in row.codes]
        assert len(codes) == len(set(codes))
