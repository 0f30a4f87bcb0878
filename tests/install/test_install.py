"""The wheel: built once by the Dockerfiles' own lines, installed in clean environments.

Needs a package index; minutes. Lines that need root or AWS's index are not run here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.unit.deploy.dockerfile import ROOT, runs

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
NOT_HERE = ("apt-get", "useradd", "curl ", "neuron.list", "/requirements/neuron.txt")
DISTRIBUTIONS_MAX = 45
BYTES_MAX = 10**9


class Stage:
    """A folder that plays the image's file system: /src, /wheels, /opt/ranvier by variables."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        python = folder / "python"
        subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
        self.environment = {
            "PATH": f"{python}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "RANVIER_SRC": str(folder / "src"),
            "RANVIER_WHEELS": str(folder / "wheels"),
            "RANVIER_VENV": str(folder / "ranvier"),
            "RANVIER_BUILD": str(folder / "build"),
            "RANVIER_CACHE_ROOT": str(folder / "cache"),
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
            **variables,
        }
        _copy_sources(folder / "src")

    def run(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", line], env=self.environment, capture_output=True, text=True,
            cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    @property
    def wheel(self) -> Path:
        (found,) = (self.folder / "wheels").glob("*.whl")
        return found


def _copy_sources(target: Path) -> None:
    """What `COPY . /src` takes: the files that git tracks, without the tests."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        if not name.startswith(("tests/", "benchmarks/")) and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_here(name: str) -> list[str]:
    return [line for line in runs(name) if not any(word in line for word in NOT_HERE)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """docker/Dockerfile's shell lines, run in order."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    stage = Stage(tmp_path_factory.mktemp("image"))
    lines = run_here("Dockerfile")
    assert len(lines) == 4
    for line in lines:
        stage.run(line)
    return stage


def test_wheel_holds_every_kernel_and_says_where_it_runs(image):
    assert image.wheel.name.startswith("ranvier-")
    assert "-py3-none-manylinux_2_" in image.wheel.name
    with zipfile.ZipFile(image.wheel) as archive:
        names = archive.namelist()
        (library,) = [name for name in names if name.endswith(".so")]
        assert library == "ranvier/native/libranvier_kernels.so"
    assert not [name for name in names if name.startswith(("tests", "csrc", "docs"))]


def test_installed_wheel_runs_without_a_compiler(image):
    """The environment of the image has the kernels in use, and no path to a compiler."""
    image.environment["PATH"] = f"{image.folder}/ranvier/bin"
    command = [f"{image.folder}/ranvier/bin/ranvier", "doctor", "--target", "cpu", "--json"]
    done = subprocess.run(command, env=image.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["kernels"]["status"] == "ok"


def test_base_install_is_small(image):
    """At most 45 distributions and 1 GB, and neither PyTorch nor transformers."""
    site = next((image.folder / "ranvier/lib").glob("python*/site-packages"))
    names = {path.name.split("-")[0].lower() for path in site.glob("*.dist-info")}
    names -= {"pip", "setuptools"}  # what a fresh environment brings
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{len(names)} distributions, {size / 1e6:.0f} MB: {', '.join(sorted(names))}")
    assert len(names) <= DISTRIBUTIONS_MAX
    assert size <= BYTES_MAX
    assert not names & {"torch", "transformers"}


def test_neuron_wheel_needs_no_compiler_and_runs_anywhere(tmp_path):
    """docker/Dockerfile.neuron's own lines; without AWS's packages the host side still starts."""
    stage = Stage(tmp_path, RANVIER_TARGET_DEVICE="neuron")
    lines = run_here("Dockerfile.neuron")
    assert len(lines) == 5
    for line in lines:
        stage.run(line.replace("python3 -m venv", f"{sys.executable} -m venv"))
    assert stage.wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(stage.wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


def test_unknown_target_device_stops_the_install(tmp_path):
    stage = Stage(tmp_path, RANVIER_TARGET_DEVICE="tpu")
    command = ["bash", "-ec", 'python -m pip install "$RANVIER_SRC"']
    done = subprocess.run(command, env=stage.environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "RANVIER_TARGET_DEVICE='tpu' is unknown; known: cpu, cuda, neuron" in done.stderr
