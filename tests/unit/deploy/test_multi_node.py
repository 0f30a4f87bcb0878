"""Manifests and the script of many ranks: flags that exist, numbers and codes that agree."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml
from tests.unit.deploy.dockerfile import ROOT
from tests.unit.deploy.test_deploy import known_flags

from ranvier.cli.options.settings import Options
from ranvier.cli.serving.order import EngineOrder, Share, _numbers, neuron_variables
from ranvier.cluster.detect import Place, detect
from ranvier.core.errors import ClusterError, ConfigError

NAMES = ("leader-worker-set.yaml", "indexed-job.yaml")


def documents(name):
    return list(yaml.safe_load_all((ROOT / "deploy/kubernetes" / name).read_text()))


def pods(name):
    """Every pod template of a manifest."""
    found = []
    for document in documents(name):
        spec = document["spec"]
        if document["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            found += [group["leaderTemplate"], group["workerTemplate"]]
        elif document["kind"] == "Job":
            found.append(spec["template"])
    return found


def option(words, name):
    return words[words.index(name) + 1]


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_exists_and_pods_are_locked_down(name):
    for pod in pods(name):
        (container,) = pod["spec"]["containers"]
        flags = {word for word in container["args"] if word.startswith("--")}
        assert flags <= known_flags()
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        (key,) = [e for e in container["env"] if e["name"] == "RANVIER_CLUSTER_KEY"]
        assert "secretKeyRef" in key["valueFrom"]
        drain = int(option(container["args"], "--shutdown-timeout"))
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain


def test_all_pods_of_a_group_run_one_command_over_an_even_share_of_devices():
    leader, worker = pods("leader-worker-set.yaml")
    words = leader["spec"]["containers"][0]["args"]
    assert worker["spec"]["containers"][0]["args"] == words
    group = documents("leader-worker-set.yaml")[0]["spec"]["leaderWorkerTemplate"]
    assert group["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert int(option(words, "--tensor-parallel-size")) % group["size"] == 0
    assert "readinessProbe" not in worker["spec"]["containers"][0]


def test_the_job_finds_its_rank_0_and_tells_again_from_never():
    service, job, front = documents("indexed-job.yaml")
    spec, words = job["spec"], pods("indexed-job.yaml")[0]["spec"]["containers"][0]["args"]
    assert int(option(words, "--nnodes")) == spec["completions"] == spec["parallelism"]
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert option(words, "--master-addr") == host
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
    rules = {r["action"]: r["onExitCodes"]["values"] for r in spec["podFailurePolicy"]["rules"]}
    assert rules == {"FailJob": [ConfigError.exit_code], "Count": [ClusterError.exit_code]}
    assert front["spec"]["selector"]["batch.kubernetes.io/job-completion-index"] == "0"


def _run_script(tmp_path, code):
    """The batch script with srun and scontrol that only write down what they are given."""
    for name, ends in (("srun", code), ("scontrol", 0)):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $@ key=${{#RANVIER_CLUSTER_KEY}}"\nexit {ends}\n')
        path.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}
    words = ["bash", str(ROOT / "deploy/slurm/serve.sbatch"), "/data/m", "--max-num-seqs", "4"]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(("code", "again"), [(7, True), (2, False), (0, False)])
def test_the_slurm_job_is_queued_again_when_a_rank_was_lost_alone(tmp_path, code, again):
    ended = _run_script(tmp_path, code)
    assert ended.returncode == code
    first = ended.stdout.splitlines()[0]
    assert "ranvier serve /data/m" in first and "--max-num-seqs 4" in first and "key=64" in first
    flags = {w for w in first.split("ranvier serve")[1].split() if w.startswith("--")}
    assert flags <= known_flags()
    assert ("scontrol requeue 5" in ended.stdout) == again


def test_neurons_variables_say_what_the_place_says():
    place = Place(1, 2, "10.0.0.7", 29510)
    variables = neuron_variables(place, 128)
    assert variables == {
        "NEURON_RT_ROOT_COMM_ID": "10.0.0.7:29512",
        "NEURON_PJRT_PROCESSES_NUM_DEVICES": "64,64",
        "NEURON_PJRT_PROCESS_INDEX": "1",
    }
    found = detect(variables)
    assert (found.rank, found.count, found.address) == (1, 2, "10.0.0.7")


def test_an_order_arrives_as_it_was():
    order = EngineOrder(Options(model="m"), Place(1, 2, "a"), b"\x00\xff" * 16, 5.0, Share(1, 2))
    assert EngineOrder.load(order.dump()) == order


def test_replicas_number_off_the_devices_that_are_visible(monkeypatch):
    name = "NEURON_RT_VISIBLE_CORES"
    monkeypatch.delenv(name, raising=False)
    assert _numbers(name, 4, 4) == "4,5,6,7"
    monkeypatch.setenv(name, "8-15")
    assert _numbers(name, 4, 4) == "12,13,14,15"
    with pytest.raises(ConfigError, match="numbers 8 to 11"):
        _numbers(name, 8, 4)
