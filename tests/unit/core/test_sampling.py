"""Sampling parameters as they are given are numbers, or an error that names the field."""

from __future__ import annotations

import pytest

from ranvier.core.errors import RequestError
from ranvier.core.sampling import SamplingParams


def test_logit_bias_takes_ids_as_json_writes_them():
    assert SamplingParams(logit_bias={"50": 3, 7: -1.5}).logit_bias == {50: 3.0, 7: -1.5}


@pytest.mark.parametrize("bias", [{"x": 1}, {5: "a lot"}, {5: None}, [5], {5: float("nan")}])
def test_logit_bias_that_is_none_is_refused_by_name(bias):
    with pytest.raises(RequestError, match="logit_bias must be"):
        SamplingParams(logit_bias=bias)
