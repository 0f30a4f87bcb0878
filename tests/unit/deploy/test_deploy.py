"""Images and manifests keep their promises: flags that exist, probes, limits, no root."""

from __future__ import annotations

import importlib.util
import tomllib

import pytest
import yaml
from tests.unit.deploy.dockerfile import ROOT, environment, instructions, runs

from ranvier.cli.commands import serve
from ranvier.cli.options.flags import Parser

DOCKERFILES = ("Dockerfile", "Dockerfile.neuron")
KUBERNETES = ("cpu.yaml", "neuron.yaml")


def load_build_script():
    path = ROOT / "scripts/build_kernels.py"
    spec = importlib.util.spec_from_file_location("build_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build_script()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def known_flags():
    parser = Parser(prog="serve")
    serve.add_arguments(parser)
    return {name for action in parser._actions for name in action.option_strings}


def documents(name):
    return list(yaml.safe_load_all((ROOT / "deploy/kubernetes" / name).read_text()))


def deployment(name):
    return next(d for d in documents(name) if d["kind"] == "Deployment")


def arguments_in_deploy():
    """Every command line of the manifests, with where it stands."""
    found = []
    for name in KUBERNETES:
        pod = deployment(name)["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            found.append((f"{name} {container['name']}", container["args"]))
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    found += [(f"compose {n}", s["command"]) for n, s in compose["services"].items()]
    return found


@pytest.mark.parametrize(("where", "words"), arguments_in_deploy())
def test_every_flag_of_a_manifest_exists(where, words):
    flags = {word for word in words if word.startswith("--")}
    assert flags <= known_flags(), where
    assert not words[0].startswith("-"), where


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_without_root_and_stop_with_sigterm(name):
    words = instructions(name)
    last = {word: argument for word, argument in words}
    assert last["USER"] == "ranvier"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "/health" in last["HEALTHCHECK"]
    order = [word for word, _ in words]
    assert order.index("USER") < order.index("ENTRYPOINT")
    flags = {part for part in yaml.safe_load(last["ENTRYPOINT"]) if part.startswith("--")}
    assert flags <= known_flags()
    assert all(argument.count("&& rm -rf /var/lib/apt/lists") for argument in runs(name)
               if "apt-get install" in argument)  # fmt: skip


def test_neuron_image_builds_for_neuron_with_its_requirements():
    assert environment("Dockerfile.neuron")["RANVIER_TARGET_DEVICE"] == "neuron"
    assert any("-r /requirements/neuron.txt" in line for line in runs("Dockerfile.neuron"))
    head = (ROOT / "docker/Dockerfile.neuron").read_text().split("\nFROM")[0]
    assert "has not been built or run on Neuron hardware" in head


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_drain_probe_and_are_locked_down(name):
    spec = deployment(name)["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    drain = int(words[words.index("--shutdown-timeout") + 1])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pause
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert container["startupProbe"]["httpGet"]["path"] == "/live"
    assert "--require-artifacts" in words
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert spec["strategy"] == {"type": "Recreate"}


def test_neuron_pod_asks_for_devices_and_reads_artifacts_only():
    pod = deployment("neuron.yaml")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["aws.amazon.com/neuron"] == 1
    assert resources["requests"]["aws.amazon.com/neuron"] == 1
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["data"]["readOnly"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_services_and_claims_belong_to_the_pods(name):
    by_kind = {document["kind"]: document for document in documents(name)}
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in by_kind["Deployment"]["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [by_kind["PersistentVolumeClaim"]["metadata"]["name"]]


def test_compose_serves_on_loopback_after_compiling():
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    serving = compose["services"]["serve"]
    assert serving["ports"] == ["127.0.0.1:8000:8000"]
    assert serving["depends_on"]["compile"]["condition"] == "service_completed_successfully"
    drain = int(serving["command"][serving["command"].index("--shutdown-timeout") + 1])
    assert int(serving["stop_grace_period"].rstrip("s")) > drain
    build = compose["services"]["compile"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()


def test_requirements_are_the_extra():
    lines = (ROOT / "requirements/neuron.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert pins == PROJECT["optional-dependencies"]["neuron"]
    assert "--extra-index-url https://pip.repos.neuron.amazonaws.com" in lines


def test_target_device_is_read_and_checked():
    assert BUILD.target_device({}) == "cpu"
    assert BUILD.target_device({"VLLM_TARGET_DEVICE": "neuron"}) == "neuron"
    both = {"VLLM_TARGET_DEVICE": "neuron", "RANVIER_TARGET_DEVICE": "CPU"}
    assert BUILD.target_device(both) == "cpu"
    with pytest.raises(ValueError, match="RANVIER_TARGET_DEVICE='tpu' is unknown; known: cpu"):
        BUILD.target_device({"RANVIER_TARGET_DEVICE": "tpu"})


def test_wheel_tag_names_the_oldest_glibc_that_works(monkeypatch):
    monkeypatch.setattr(BUILD.platform, "system", lambda: "Linux")
    monkeypatch.setattr(BUILD.platform, "machine", lambda: "x86_64")
    assert BUILD.platform_tag(b"..GLIBC_2.4..GLIBC_2.34\0GLIBC_2.9") == "manylinux_2_34_x86_64"
    assert BUILD.platform_tag(b"GLIBC_2.4") == "manylinux_2_17_x86_64"
    assert "-" not in BUILD.platform_tag(b"no symbols")
