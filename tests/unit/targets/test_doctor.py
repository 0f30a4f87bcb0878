"""`ranvier doctor` on recorded machines: what is wrong is named, with its fix."""

from __future__ import annotations

import json

import pytest
from tests.unit.targets.recorded import GOOD_TRN2, PLAIN, changed, neuron_ls

from ranvier.cli.main import main
from ranvier.cli.reports import machine as doctor_report
from ranvier.targets.checks import Kernels
from ranvier.targets.neuron.checks import has_neuron
from ranvier.targets.neuron.versions import release_of, series, version_numbers
from ranvier.targets.system import CommandResult, RealSystem, Speed

KERNELS, SPEED = Kernels(True, "avx512"), Speed(20e9, 100e9)


def examined(machine, *, kernels=KERNELS, target="auto"):
    found = doctor_report.examine(machine, kernels, SPEED, folder="/cache", target=target)
    return {finding.name: finding for finding in found}


def wrong(machine, **options):
    return {name: f for name, f in examined(machine, **options).items() if f.status != "ok"}


def test_good_trn2_has_nothing_to_mend():
    found = examined(GOOD_TRN2)
    assert wrong(GOOD_TRN2) == {}
    assert found["instance"].detail.startswith("trn2.48xlarge: 16 x Trainium2, 64 logical cores")
    assert found["versions"].detail == "compiler 2.28.7631.0+abc, runtime 2.35.30.0: SDK 2.33"
    assert found["neuron-ls"].detail == "16 devices, 128 cores"


def test_plain_machine_is_ready_for_its_cpu():
    found = examined(PLAIN)
    assert wrong(PLAIN) == {}
    assert "no Neuron device" in found["neuron"].detail
    assert found["processor"].detail == "Xeon, 2 cores: avx2, fma, avx512f"


def test_neuron_demanded_on_a_plain_machine_fails():
    failures = wrong(PLAIN, target="neuron")
    assert failures["driver"].status == "failure"
    assert "there is no /dev/neuron*" in failures["devices"].detail


def test_driver_of_the_first_generation_is_wrong():
    (finding,) = wrong(changed(GOOD_TRN2, files={"/sys/module/neuron/version": "1.5.0"})).values()
    assert finding.status == "failure"
    assert "neuron 1.5.0 is loaded; inf2 and trn need version 2" in finding.detail


def test_driver_that_is_not_loaded_says_modprobe():
    machine = changed(
        GOOD_TRN2,
        files={"/sys/module/neuron/version": None},
        commands={"modinfo": CommandResult(0, "2.31.12.0\n")},
    )
    finding = wrong(machine)["driver"]
    assert finding.detail == "neuron 2.31.12.0 is installed but not loaded"
    assert finding.fix == "sudo modprobe neuron"


def test_no_permission_on_a_device_is_named():
    machine = changed(GOOD_TRN2, closed=frozenset({"/dev/neuron0"}))
    finding = wrong(machine)["devices"]
    assert finding.status == "failure"
    assert finding.detail == "no permission on /dev/neuron0"


def test_missing_devices_in_a_container():
    machine = changed(GOOD_TRN2, folders={**GOOD_TRN2.folders, "/dev": ["neuron0"]})
    assert "trn2.48xlarge has 16" in wrong(machine)["devices"].detail


def test_busy_cores_name_the_process():
    process = {"pid": 4321, "command": "python serve.py"}
    machine = changed(GOOD_TRN2, commands={"neuron-ls": neuron_ls(processes=[process])})
    finding = wrong(machine)["cores"]
    assert finding.status == "failure"
    assert finding.detail == "held by 4321 (python serve.py)"


def test_newer_form_of_neuron_ls_is_read():
    inner = json.loads(neuron_ls(2).output)
    output = json.dumps({"instance_type": "trn2.48xlarge", "mlas": inner})
    machine = changed(GOOD_TRN2, commands={"neuron-ls": CommandResult(0, f"notice\n{output}")})
    assert examined(machine)["neuron-ls"].detail == "2 devices, 16 cores"
    machine = changed(GOOD_TRN2, commands={"neuron-ls": CommandResult(0, "no json")})
    assert wrong(machine)["neuron-ls"].status == "warning"


def test_neuron_ls_that_fails_shows_its_last_line():
    machine = changed(GOOD_TRN2, commands={"neuron-ls": CommandResult(1, "a\nno driver\n")})
    assert wrong(machine)["neuron-ls"].detail == "no driver"


def test_runtime_of_another_release_fails():
    old = CommandResult(0, "aws-neuronx-runtime-lib 2.21.41.0\n")
    finding = wrong(changed(GOOD_TRN2, commands={"dpkg-query": old}))["versions"]
    assert finding.status == "failure"
    assert "do not belong together: SDK 2.33 has runtime 2.35" in finding.detail


def test_unknown_compiler_is_a_warning_with_the_table():
    finding = wrong(changed(GOOD_TRN2, packages={"neuronx-cc": "2.99.1"}))["versions"]
    assert finding.status == "warning"
    assert "SDK 2.33: compiler 2.28, runtime 2.35" in finding.fix


def test_rpm_and_the_compilers_own_word_are_read():
    machine = changed(
        GOOD_TRN2,
        commands={
            "dpkg-query": None,
            "rpm": CommandResult(0, "aws-neuronx-runtime-lib 2.35.30.0\n"),
            "neuronx-cc": CommandResult(0, "NeuronX Compiler version 2.28.7631.0+abc\n"),
        },
        packages={"neuronx-cc": None},
    )
    assert examined(machine)["versions"].status == "ok"


@pytest.mark.parametrize(
    ("packages", "detail"),
    [
        ({"libneuronxla": None}, "libneuronxla is not installed"),
        ({"libneuronxla": "2.2.1"}, "needs libneuronxla 3.*"),
        ({"jax": "0.12.0"}, "takes JAX 0.7, 0.8, 0.9, 0.10"),
    ],
)
def test_plugin_that_does_not_match(packages, detail):
    finding = wrong(changed(GOOD_TRN2, packages=packages))["plugin"]
    assert finding.status == "failure"
    assert detail in finding.detail
    assert finding.fix.startswith("pip install")


def test_missing_libraries_say_the_package():
    machine = changed(GOOD_TRN2, folders={"/dev": GOOD_TRN2.folders["/dev"]})
    found = wrong(machine)
    assert found["runtime library"].fix == "sudo apt-get install aws-neuronx-runtime-lib=2.*"
    assert found["collectives library"].status == "failure"


def test_environment_that_hurts():
    machine = changed(GOOD_TRN2, environment={"NEURON_LOGICAL_NC_CONFIG": "4"})
    assert "Trainium2 allows 1, 2" in wrong(machine)["environment"].detail
    machine = changed(GOOD_TRN2, environment={"NEURON_RT_STOCHASTIC_ROUNDING_EN": "1"})
    assert wrong(machine)["environment"].fix == "unset NEURON_RT_STOCHASTIC_ROUNDING_EN"


def test_python_and_system_outside_the_documented_ones():
    assert wrong(changed(GOOD_TRN2, python="3.14.0"))["python for Neuron"].status == "failure"
    release = {"/etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n'}
    assert wrong(changed(GOOD_TRN2, files=release))["system for Neuron"].status == "warning"


def test_scarce_memory_disk_and_pages():
    machine = changed(
        PLAIN,
        files={
            "/proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 900000 kB\n",
            "/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
        },
        free=2**30,
    )
    assert set(wrong(machine)) == {"memory", "huge pages", "disk"}


def test_kernels_that_are_missing_or_generic():
    assert "several times slower" in wrong(PLAIN, kernels=Kernels(False, "none"))["kernels"].detail
    assert "another machine type" in wrong(PLAIN, kernels=Kernels(True, "generic"))["kernels"].fix


def test_report_masks_secrets_and_counts():
    machine = changed(PLAIN, environment={"VLLM_API_KEY": "hunter2", "XLA_FLAGS": "--a"})
    found = list(examined(machine).values())
    document = doctor_report.environment_document(machine, found)
    assert document["environment"] == {"VLLM_API_KEY": "(set)", "XLA_FLAGS": "--a"}
    assert doctor_report.lines(found).endswith("8 checks, 0 warnings, 0 failures")


def test_command_on_this_machine(capsys):
    assert main(["doctor", "--target", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {f["name"] for f in document["findings"]} >= {"processor", "kernels", "speed"}
    assert main(["collect-env"]) == 0
    assert "jaxlib: " in capsys.readouterr().out


@pytest.mark.skipif(has_neuron(RealSystem()), reason="this machine has Neuron devices")
def test_command_fails_where_neuron_is_demanded_and_absent(capsys):
    assert main(["doctor", "--target", "neuron"]) == 1
    assert "failure   driver" in capsys.readouterr().out


def test_real_system_answers_for_what_is_not_there(tmp_path):
    system = RealSystem()
    assert system.run("no-such-command-here").code == 127
    assert system.run("false").code == 1
    assert system.read(str(tmp_path)) is None
    assert system.entries(str(tmp_path / "no")) == []
    assert not system.can_open(str(tmp_path / "no"))
    assert system.free_bytes(str(tmp_path / "no")) > 0
    assert system.package("no-such-distribution") is None


def test_versions_are_compared_by_series():
    assert version_numbers("2.28.7631.0+ab") == (2, 28, 7631, 0)
    assert version_numbers("none") == ()
    assert series("0.10.0") == "0.10"
    assert release_of(None, "2.35.30").sdk == "2.33"
    assert release_of(None, None) is None
