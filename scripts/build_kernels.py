"""Compile csrc/ into one shared library: a hatch build hook, and a script to run by hand.

Without a C++ compiler it says so and builds nothing: the programs then use the reference kernels.
RANVIER_TARGET_DEVICE (or VLLM_TARGET_DEVICE) says what an install is for: cpu (default), cuda or
neuron. For neuron no kernels are compiled: the device runs programs, the host only prepares them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src/ranvier/native/libranvier_kernels.so"
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
FLAGS += ["-fno-math-errno", "-ffp-contract=fast"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
ISA_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}
"""`x_vector.cc` is compiled once for each of the first four, `x_amx.cc` for the last."""


TARGETS = {
    "cpu": "",
    "cuda": "pip install 'ranvier[cuda]'",
    "neuron": "pip install 'ranvier[neuron]' "
    "--extra-index-url https://pip.repos.neuron.amazonaws.com",
}
"""What an install may be for, and the extra that completes it."""
GLIBC_MIN = 17
"""The oldest glibc (2.17) that a manylinux tag names."""


class CustomBuildHook(BuildHookInterface):
    """Builds the library before the wheel (or the editable install) is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        target = target_device(os.environ)
        if TARGETS[target]:
            print(f"ranvier: for {target}: {TARGETS[target]}", file=sys.stderr)
        if target != "neuron":
            build()
        if LIBRARY.is_file():
            build_data["pure_python"] = False
            build_data["infer_tag"] = False
            build_data["tag"] = f"py3-none-{platform_tag(LIBRARY.read_bytes())}"
            build_data["artifacts"].append("src/ranvier/native/*.so")


def target_device(environment: Mapping[str, str]) -> str:
    """What this install is for. Raises ValueError for an unknown device."""
    for name in ("RANVIER_TARGET_DEVICE", "VLLM_TARGET_DEVICE"):
        value = environment.get(name, "").lower()
        if value and value not in TARGETS:
            raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(TARGETS)}.")
        if value:
            return value
    return "cpu"


def platform_tag(library: bytes) -> str:
    """The wheel's platform: any Linux whose glibc has every symbol that the library asks for."""
    minors = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library)]
    if platform.system() != "Linux" or not minors:
        return re.sub(r"[-.]", "_", sysconfig.get_platform())
    return f"manylinux_2_{max(GLIBC_MIN, *minors)}_{platform.machine()}"


def build() -> bool:
    """Compile what changed and link. False, with a notice, where that is not possible."""
    sources = sorted((ROOT / "csrc").glob("*.cc"))
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not sources:
        return False
    if compiler is None:
        print("ranvier: no C++ compiler: the reference kernels will be used", file=sys.stderr)
        return False
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        print("ranvier: jaxlib's headers are missing: no kernels are built", file=sys.stderr)
        return False
    objects = ROOT / "build/kernels"
    objects.mkdir(parents=True, exist_ok=True)
    include = ["-isystem", str(Path(spec.origin).parent / "include"), "-I", str(ROOT / "csrc")]

    def one(job: tuple[Path, str | None]) -> str:
        source, isa = job
        out = objects / f"{source.stem}{'.' + isa if isa else ''}.o"
        flags = [] if isa is None else [*ISA_FLAGS[isa], f"-DRANVIER_ISA={isa}"]
        command = [compiler, *FLAGS, *flags, *include, "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True)
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(one, _jobs(sources)))
    temporary = LIBRARY.with_suffix(".tmp")
    # The C++ runtime stays outside: put in, it asks for a newer glibc than Ubuntu 22.04 has.
    subprocess.run([compiler, "-shared", "-o", str(temporary), *parts, "-lpthread"], check=True)
    temporary.replace(LIBRARY)
    return True


def _jobs(sources: list[Path]) -> Iterator[tuple[Path, str | None]]:
    """Each source with the ISA that it is compiled for, None: the compiler's own."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    for source in sources:
        if source.stem.endswith("_vector"):
            isas = [isa for isa in ISA_FLAGS if isa != "amx"] if is_x86 else ["generic"]
            yield from ((source, isa) for isa in isas)
        elif source.stem.endswith("_amx"):
            if is_x86:
                yield source, "amx"
        else:
            yield source, None


if __name__ == "__main__":
    sys.exit(0 if build() else 1)
