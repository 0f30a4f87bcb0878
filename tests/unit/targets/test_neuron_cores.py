"""Variables that choose cores: read, and refused where an artifact cannot run under them."""

from __future__ import annotations

import pytest

from ranvier.core.errors import ConfigError, TargetError
from ranvier.targets.neuron.cores import check_cores, visible_cores


@pytest.mark.parametrize(
    ("text", "cores"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("1, 4-5", (1, 4, 5))]
)
def test_core_lists_are_read(text, cores):
    assert visible_cores(text) == cores


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "1,1", "0-99999"])
def test_wrong_core_lists_are_named(text):
    with pytest.raises(ConfigError, match="NEURON_RT_VISIBLE_CORES"):
        visible_cores(text)


def check(variables, cores=4, logical=2):
    check_cores(variables, ranks=cores, logical_core_config=logical)


def test_enough_cores_and_the_same_logical_core_pass():
    check({})
    check({"NEURON_RT_VISIBLE_CORES": "4-7", "NEURON_LOGICAL_NC_CONFIG": "2"})
    check({"NEURON_RT_NUM_CORES": "8"})
    check({"NEURON_RT_VISIBLE_CORES": "0-3", "NEURON_RT_NUM_CORES": "1"})


@pytest.mark.parametrize(
    ("variables", "error", "match"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "0-2"}, TargetError, "gives 3 cores; .* compiled for 4"),
        ({"NEURON_RT_NUM_CORES": "2"}, TargetError, "NEURON_RT_NUM_CORES gives 2"),
        ({"NEURON_RT_NUM_CORES": "two"}, ConfigError, "positive integer"),
        ({"NEURON_LOGICAL_NC_CONFIG": "1"}, TargetError, "compiled for 2 physical"),
    ],
)
def test_what_cannot_run_is_refused(variables, error, match):
    with pytest.raises(error, match=match):
        check(variables)
