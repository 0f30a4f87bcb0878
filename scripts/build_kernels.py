"""Compile csrc/ into one shared library: a hatch build hook, and a script to run by hand.

Without a C++ compiler it says so and builds nothing: the programs then use the reference kernels.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src/ranvier/native/libranvier_kernels.so"
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
FLAGS += ["-fno-math-errno", "-ffp-contract=fast"]
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
    "_bf16": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mavx512bf16"],
    "_amx": [
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mavx512bf16",
        "-mamx-tile", "-mamx-bf16", "-mamx-int8",
    ],
}  # fmt: skip


class CustomBuildHook(BuildHookInterface):
    """Builds the library before the wheel (or the editable install) is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        if build():
            build_data["pure_python"] = False
            build_data["infer_tag"] = False
            build_data["artifacts"].append("src/ranvier/native/*.so")


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

    def one(source: Path) -> str:
        out = objects / f"{source.stem}.o"
        isa = next((ISA_FLAGS[s] for s in ISA_FLAGS if source.stem.endswith(s)), [])
        command = [compiler, *FLAGS, *isa, *include, "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True)
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(one, sources))
    temporary = LIBRARY.with_suffix(".tmp")
    subprocess.run([compiler, "-shared", "-o", str(temporary), *parts, "-lpthread"], check=True)
    temporary.replace(LIBRARY)
    return True


if __name__ == "__main__":
    sys.exit(0 if build() else 1)
