"""What `ranvier plan` says beforehand is what `ranvier compile` then makes."""

from __future__ import annotations

import json

import pytest

from ranvier.cli.main import main


@pytest.mark.parametrize("degree", ["1", "2"])
def test_plan_and_compile_agree_on_programs_and_memory(capsys, tiny_model, degree):
    sizes = ["--max-model-len", "128", "--max-num-seqs", "2", "--tensor-parallel-size", degree]
    where = ["--instance", "trn2.48xlarge", "--json"]
    assert main(["plan", str(tiny_model), *sizes, *where]) == 0
    planned = json.loads(capsys.readouterr().out)
    target = ["--target", "neuron-trn2", "--dry-run"]
    assert main(["compile", str(tiny_model), *sizes, *where, *target]) == 0
    compiled = json.loads(capsys.readouterr().out)
    assert planned["memory"]["rows"] == compiled["memory"]["rows"]
    assert planned["memory"]["limit_bytes"] == compiled["memory"]["limit_bytes"]
    assert planned["fits"] is compiled["fits"] is True
    own = planned["buckets"]
    names = [f"prefill.t{t}.c{c}" for t in own["prefill_tokens"] for c in own["contexts"] if t <= c]
    names += [f"decode.r{r}.c{c}" for r in own["decode_rows"] for c in own["contexts"]]
    assert sorted(names) == sorted(program["name"] for program in compiled["programs"])
    assert own["program_count"] == len(names)
