"""Encode programs, and the steps of models that see pictures, are legal for Neuron."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ranvier.build.neuron.lint import lint
from ranvier.build.programs import programs
from ranvier.core.buckets import BucketSet
from ranvier.models.table import resolve
from tests.parity.vision_cases import GOLDENS, PICTURES
from tests.parity.vision_model import sizes_of

BUCKETS = BucketSet(prefill_tokens=(32,), decode_rows=(2,), contexts=(192,))


@pytest.mark.parametrize("family", PICTURES)
def test_every_program_is_legal(family):
    spec = resolve(json.loads((GOLDENS / family / "config.json").read_text()))
    sizes = replace(sizes_of(spec, "reference", "bfloat16"), buckets=BUCKETS)
    table = programs(spec, sizes)
    assert [p.name for p in table][:2] == ["prefill.t32.c192", "decode.r2.c192"]
    assert len(table) == 2 + len(sizes.vision.units)
    for program in table:
        module = program.lower("neuron").compiler_ir("stablehlo")
        assert [str(v) for v in lint(module, "trn2")] == [], program.name
