#!/usr/bin/env python3
"""A stand-in for neuronx-cc that keeps its documented command line, for tests of the driver.

It checks every flag, reads the HLO module's first bytes, and writes a NEFF-like file, or fails as
the real one is known to when the environment says so: FAIL="name=NCC_EOOM001,name=killed".
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        print("NeuronX Compiler version 2.99.0-contract\n\nPython version 3.11")
        return 0
    parser = argparse.ArgumentParser(prog="neuronx-cc", allow_abbrev=False)
    parser.add_argument("command", choices=["compile"])
    parser.add_argument("hlo", type=Path)
    parser.add_argument("--framework", choices=["XLA"], required=True)
    parser.add_argument(
        "--target", choices=["inf2", "trn1", "trn1n", "trn2", "trn3"], required=True
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model-type", choices=["generic", "transformer", "unet-inference"])
    parser.add_argument("-O", "--optlevel", choices=["1", "2", "3"])
    parser.add_argument("--auto-cast", choices=["none", "matmult", "all"])
    parser.add_argument("-lnc", "--logical-nc-config", choices=["1", "2"])
    given = parser.parse_args()
    name = given.hlo.name.removesuffix(".hlo.pb")
    if given.target in ("inf2", "trn1") and given.logical_nc_config == "2":
        print("[NCC_EARG001] LNC 2 is not legal for this target", file=sys.stderr)
        return 70
    failures = dict(pair.split("=") for pair in os.environ.get("FAIL", "").split(",") if pair)
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(f"{name} {' '.join(sys.argv[1:])}\n")
    if failures.get(name) == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if failures.get(name) == "silent":
        return 0
    if name in failures:
        print(f"2026-01-01 ERROR [{failures[name]}] compilation failed", file=sys.stderr)
        return 70
    data = given.hlo.read_bytes()
    assert data[:1] == b"\n", "not a serialized HloModuleProto"
    given.output.write_bytes(b"NEFF" + len(data).to_bytes(8, "little"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
