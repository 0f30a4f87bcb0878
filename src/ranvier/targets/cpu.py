"""The CPU as a target: what this machine has, and whether a build fits in its memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ranvier.targets.host_memory import RESERVE_BYTES
from ranvier.targets.neuron.memory import MemoryReport, MemoryRow
from ranvier.targets.numbers import MemorySizes, ModelNumbers, dtype_bytes
from ranvier.targets.system import System

__all__ = ["Machine", "fit_machine", "machine"]

FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16",
    "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Processor flags that a kernel is chosen by, x86's and ARM's."""


@dataclass(frozen=True)
class Machine:
    """This machine, in numbers; zero where /proc does not tell."""

    model: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    available_bytes: int


def machine(system: System) -> Machine:
    """Read /proc/cpuinfo and /proc/meminfo."""
    text = system.read("/proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    cores = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        cores += name.strip() == "processor"
        fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = meminfo(system)
    return Machine(
        model=fields.get("model name", "unknown"),
        cores=cores,
        features=tuple(name for name in FEATURES if name in flags),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
    )


def meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo in bytes; counts (HugePages_Total) as they are."""
    found: dict[str, int] = {}
    for line in (system.read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def fit_machine(model: ModelNumbers, sizes: MemorySizes, available_bytes: int) -> MemoryReport:
    """The memory of one serving process on this machine."""
    rows: dict[str, int] = {}
    for group in model.groups:
        size = math.ceil(group.elements * dtype_bytes(group.dtype or sizes.dtype))
        rows[f"weights: {group.kind}"] = rows.get(f"weights: {group.kind}", 0) + size
    each = dtype_bytes(sizes.kv_dtype)
    tokens = sizes.blocks * sizes.block_tokens
    cache = math.ceil(2 * model.layers * tokens * model.kv_heads * model.head_size * each)
    text = (
        f"2 x {model.layers} layers x {sizes.blocks} blocks x {sizes.block_tokens} tokens x "
        f"{model.kv_heads} heads x {model.head_size} x {each:g} B"
    )
    step = sizes.max_num_batched_tokens * (2 * model.hidden + 3 * model.intermediate) * 4
    step += sizes.max_num_seqs * model.vocab_size * 4
    table = [MemoryRow(kind, size, "elements x bytes") for kind, size in rows.items()]
    table += [
        MemoryRow("kv cache", cache, text),
        MemoryRow("activations", step, "tokens x (2 hidden + 3 intermediate) x 4 B + logits"),
        MemoryRow("runtime", RESERVE_BYTES, "512 MiB (allowance)"),
    ]
    total = sum(row.bytes for row in table)
    problems = []
    if total > available_bytes:
        gib = 2**30
        problems.append(
            f"{total / gib:.1f} GiB are needed, {available_bytes / gib:.1f} GiB are available: "
            "lower max_model_len or max_num_seqs, or use a smaller model"
        )
    return MemoryReport(
        instance="cpu", tensor_parallel=1, limit_bytes=available_bytes, rows=tuple(table),
        problems=tuple(problems),
    )  # fmt: skip
