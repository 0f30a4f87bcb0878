"""Who am I: options and launchers agree, or the error names both."""

from __future__ import annotations

import pytest

from ranvier.cluster.detect import PORT_DEFAULT, detect, first_host
from ranvier.core.errors import ConfigError

SLURM = {
    "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "trn[07-09,12]",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
NEURON = {
    "NEURON_PJRT_PROCESS_INDEX": "1", "NEURON_PJRT_PROCESSES_NUM_DEVICES": "64,64",
    "NEURON_RT_ROOT_COMM_ID": "10.0.0.7:62182",
}  # fmt: skip
LWS = {"LWS_WORKER_INDEX": "1", "LWS_GROUP_SIZE": "3", "LWS_LEADER_ADDRESS": "a-0.a.default"}


def place(variables, **given):
    found = detect(variables, **given)
    return None if found is None else (found.rank, found.count, found.address)


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        ({}, {}, None),
        ({}, {"count": 1, "rank": 0}, None),
        ({}, {"count": 2, "rank": 1, "address": "10.0.0.1"}, (1, 2, "10.0.0.1")),
        (SLURM, {}, (2, 4, "trn07")),
        ({**SLURM, "PMI_RANK": "2", "PMI_SIZE": "4"}, {}, (2, 4, "trn07")),
        (SLURM, {"count": 4, "rank": 2, "address": "head"}, (2, 4, "head")),
        ({"SLURM_JOB_NODELIST": "a1", "SLURM_NTASKS": "1"}, {}, None),
        (MPI, {}, (1, 2, "127.0.0.1")),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, {"address": "x"}, (0, 3, "x")),
        (NEURON, {}, (1, 2, "10.0.0.7")),
        ({"JOB_COMPLETION_INDEX": "3"}, {"count": 4, "address": "job-0.job"}, (3, 4, "job-0.job")),
        ({"JOB_COMPLETION_INDEX": "0"}, {}, None),
        (LWS, {}, (1, 3, "a-0.a.default")),
        ({**LWS, "JOB_COMPLETION_INDEX": "1"}, {}, (1, 3, "a-0.a.default")),
    ],
)
def test_each_launcher_tells_the_place(variables, given, expected):
    assert place(variables, **given) == expected


@pytest.mark.parametrize(
    ("variables", "given", "says"),
    [
        (SLURM, {"rank": 1}, ["1 by the options", "2 by Slurm"]),
        (SLURM, {"count": 2}, ["2 by the options", "4 by Slurm"]),
        ({**SLURM, **NEURON}, {}, ["4 by Slurm", "2 by Neuron"]),
        ({}, {"count": 2}, ["--node-rank"]),
        ({}, {"count": 2, "rank": 0}, ["--master-addr"]),
        ({}, {"count": 2, "rank": 2, "address": "a"}, ["Rank 2", "[0, 2)"]),
        ({}, {"count": 2, "rank": -1, "address": "a"}, ["Rank -1"]),
        ({}, {"count": 0}, ["at least 1"]),
        ({}, {"rank": 1}, ["--nnodes"]),
        ({}, {"address": "a"}, ["--nnodes"]),
        ({"JOB_COMPLETION_INDEX": "x"}, {}, ["JOB_COMPLETION_INDEX is 'x'"]),
        ({}, {"count": 2, "rank": 0, "address": "a", "port": 65535}, ["master_port is 65535"]),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, {}, ["PMI", "--master-addr"]),
    ],
)
def test_what_contradicts_or_lacks_is_an_error_that_names_it(variables, given, says):
    with pytest.raises(ConfigError) as caught:
        detect(variables, **given)
    assert all(text in str(caught.value) for text in says), str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a", "a"), ("a,b", "a"), ("a[03-05,9],b", "a03"), ("a[2]-x,b", "a2-x"), ("", "")],
)
def test_first_host_of_a_slurm_list(nodes, host):
    assert first_host(nodes) == host


def test_the_port_has_a_default():
    assert detect({}, count=2, rank=0, address="a").port == PORT_DEFAULT
