"""How long a build takes, before it runs: from counts, and rates measured on one machine."""

from __future__ import annotations

__all__ = ["build_seconds"]

START_S = 2.0
"""Imports, and reading the checkpoint's tables."""
PROGRAM_S = 0.5
"""Trace, lower and compile one program; layers are scanned, so their number does not count."""
PACK_BYTES_S = 150e6
"""Read, convert, pack and write, in packed bytes."""
# Two cores (AVX-512, AMX), jax 0.11, 2026-11: ranvier compile of smollm2-135m, six programs and
# 0.27 GB of packed weights, in 3.6 s alone on the machine and 8 s beside other work.


def build_seconds(program_count: int, weights_bytes: int) -> float:
    """An estimate for two cores, rounded to a second."""
    return float(round(START_S + program_count * PROGRAM_S + weights_bytes / PACK_BYTES_S))
