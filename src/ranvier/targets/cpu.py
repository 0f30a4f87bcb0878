"""The CPU as a target: what this machine has, and whether a build fits in its memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ranvier.targets.axes import ALONE, Axes
from ranvier.targets.host_memory import RESERVE_BYTES
from ranvier.targets.neuron.memory import (
    MemoryReport,
    MemoryRow,
    gqa_rule,
    kv_bytes,
    lora_row,
    slot_bytes,
    weight_rows,
)
from ranvier.targets.numbers import MemorySizes, ModelNumbers, dtype_bytes
from ranvier.targets.system import System

__all__ = ["Machine", "fit_machine", "host_adapters", "machine"]

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


def fit_machine(
    model: ModelNumbers,
    sizes: MemorySizes,
    available_bytes: int,
    tensor_parallel: int = 1,
    axes: Axes = ALONE,
) -> MemoryReport:
    """The memory of every rank of every replica, all on this machine."""
    t, stages, replicas = tensor_parallel, axes.stages, axes.replicas
    ranks = t * stages * replicas
    each, stored = dtype_bytes(sizes.kv_dtype), gqa_rule(model.heads, model.kv_heads, t).kv_heads
    text = (
        f"2 x {model.layers} layers x {sizes.blocks} blocks x {sizes.block_tokens} tokens x "
        f"{stored} heads x {model.head_size} x {each:g} B{_times(replicas, 'replicas')}"
    )
    step = sizes.max_num_batched_tokens * (2 * model.hidden + 3 * model.intermediate) * 4
    step += sizes.max_num_seqs * model.vocab_size * 4
    table = [
        MemoryRow(row.kind, row.bytes * ranks, f"{row.formula}{_times(ranks, 'ranks')}")
        for row in weight_rows(model, sizes, t, stages)
    ]
    if sizes.lora_slots:
        slots = lora_row(model, sizes, t, stages)
        text_slots = f"{slots.formula}{_times(ranks, 'ranks')}"
        table.append(MemoryRow(slots.kind, slots.bytes * ranks, text_slots))
    host = host_adapters(model, sizes)
    if host is not None:
        text_host = f"{host.formula}{_times(replicas, 'replicas')}"
        table.append(MemoryRow(host.kind, host.bytes * replicas, text_host))
    table += [
        MemoryRow("kv cache", kv_bytes(model, sizes, t, stages) * ranks, text),
        MemoryRow(
            "activations", step * ranks,
            f"tokens x (2 hidden + 3 intermediate) x 4 B + logits{_times(ranks, 'ranks')}",
        ),
        MemoryRow(
            "runtime", RESERVE_BYTES * replicas,
            f"512 MiB (allowance){_times(replicas, 'replicas')}",
        ),
    ]  # fmt: skip
    total = sum(row.bytes for row in table)
    problem = axes.problem(t, model.layers)
    problems = [problem] if problem else []
    if total > available_bytes:
        gib = 2**30
        problems.append(
            f"{total / gib:.1f} GiB are needed, {available_bytes / gib:.1f} GiB are available: "
            "lower max_model_len or max_num_seqs, or use a smaller model"
        )
    return MemoryReport(
        instance="cpu", tensor_parallel=t, limit_bytes=available_bytes, rows=tuple(table),
        problems=tuple(problems),
    )  # fmt: skip


def host_adapters(model: ModelNumbers, sizes: MemorySizes) -> MemoryRow | None:
    """What the adapters of one engine take in host memory at most; None: it keeps none."""
    if not sizes.lora_host:
        return None
    wide = "float32" if sizes.dtype == "float32" else "bfloat16"
    each = slot_bytes(model, sizes.lora_rank, wide, 1)
    text = f"{sizes.lora_host} adapters x {each / 2**20:.1f} MiB (rank {sizes.lora_rank})"
    most, bound = math.ceil(sizes.lora_host * each), sizes.lora_host_bytes
    if bound is not None and bound < most:
        most, text = bound, f"{text}, at most {bound / 2**30:g} GiB"
    return MemoryRow("adapters on the host", most, text)


def _times(count: int, name: str) -> str:
    return f" x {count} {name}" if count > 1 else ""
