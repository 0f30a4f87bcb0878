"""What compiling costs on the host: time and memory, estimated before it starts.

Time is fitted to three published figures (NxD Inference contrib: OLMo-1B 96 s, Llama-2-7B 362 s,
Mixtral 1,208 s, two programs each): within a factor of two for these three, unknown beyond. Memory
is an allowance; nothing is published but that compilers get killed on 16 and 32 GiB hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.targets.neuron.instances import GIB
from ranvier.targets.numbers import ModelNumbers

__all__ = ["FORMULA", "CompileCost", "compile_cost", "worker_bytes"]

SECONDS_AT_1B = 42.5
EXPONENT = 0.7
WORKER_BYTES = 8 * GIB
LAYER_BYTES = GIB // 8
WORKERS_MAX = 8
"""vllm-neuron 0.24's default number of compilers at once."""
FORMULA = (
    "programs x 42.5 s x (billions of weights)^0.7 / workers; "
    "host memory: workers x (8 GiB + layers x 1/8 GiB)"
)


@dataclass(frozen=True)
class CompileCost:
    """Estimated wall time, and host memory at its peak, with this many compilers at once."""

    seconds: float
    host_bytes: int
    workers: int


def worker_bytes(layers: int) -> int:
    """Host memory of one compiler process (allowance)."""
    return WORKER_BYTES + layers * LAYER_BYTES


def compile_cost(
    model: ModelNumbers, program_count: int, *, vcpus: int | None, host_bytes: int | None
) -> CompileCost:
    """As many compilers at once as a host's memory and cores (two each) allow; unknown: one."""
    each = worker_bytes(model.layers)
    room = (
        1 if host_bytes is None or vcpus is None else min(int(0.8 * host_bytes) // each, vcpus // 2)
    )
    workers = max(1, min(program_count, room, WORKERS_MAX))
    one = SECONDS_AT_1B * (model.parameters / 1e9) ** EXPONENT
    return CompileCost(program_count * one / workers, workers * each, workers)
