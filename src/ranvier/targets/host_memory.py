"""Memory of a host: what there is, what a model needs, and the largest sizes that fit.

Pure arithmetic but for `host_memory`, which reads the system's own files. No array is made here.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ranvier.core.errors import TargetError

__all__ = [
    "RESERVE_BYTES",
    "HostMemory",
    "MemoryNeed",
    "check_fit",
    "default_blocks",
    "host_memory",
    "largest_len",
    "largest_seqs",
    "share_blocks",
]

RESERVE_BYTES = 512 * 2**20
"""Interpreter, libraries, loaded programs, tokenizer, requests, and what the system must keep."""
UNLIMITED = 2**60
"""Control groups write "no limit" as a number near 2**63."""


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Bytes that this process may ever have, and those that are free for it now."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What one model takes, by part; block 0 is the garbage block and is counted."""

    weights_bytes: int
    block_bytes: int
    block_tokens: int
    block_count: int
    max_model_len: int
    max_num_seqs: int
    program_bytes: int
    """Activations and logits of the largest step."""
    adapter_bytes: int = 0
    """The slots of LoRA adapters."""
    reserve_bytes: int = RESERVE_BYTES

    @property
    def kv_bytes(self) -> int:
        return self.block_count * self.block_bytes

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        return self.weights_bytes + self.adapter_bytes + self.program_bytes + self.reserve_bytes

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_bytes

    def rows(self) -> list[tuple[str, int]]:
        """(part, bytes), for people."""
        adapters = [("adapter slots", self.adapter_bytes)] if self.adapter_bytes else []
        return [
            ("weights", self.weights_bytes),
            *adapters,
            (f"KV cache ({self.block_count - 1} blocks of {self.block_tokens})", self.kv_bytes),
            ("programs", self.program_bytes),
            ("reserve", self.reserve_bytes),
        ]


def check_fit(need: MemoryNeed, limit_bytes: int, limit_name: str) -> None:
    """Raise TargetError, naming the largest sizes that fit, when `need` is above the limit."""
    if need.total_bytes <= limit_bytes:
        return
    parts = " + ".join(f"{name} {_gb(size)}" for name, size in need.rows())
    raise TargetError(
        f"The model does not fit: {parts} = {_gb(need.total_bytes)}, {limit_name} is "
        f"{_gb(limit_bytes)}.",
        hint=_advice(need, limit_bytes),
    )


def share_blocks(need: MemoryNeed, limit_bytes: int) -> int:
    """Blocks within `limit_bytes`, at most every sequence at its full length; garbage included."""
    full = 1 + -(-need.max_model_len // need.block_tokens) * need.max_num_seqs
    return max(0, min(full, (limit_bytes - need.fixed_bytes) // need.block_bytes))


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Memory of this machine, bounded by the control groups that this process is in."""
    total, available = _machine(root)
    for folder in _groups(root):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= UNLIMITED:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        held = max(0, used - _file_bytes(folder / "memory.stat"))
        total, available = min(total, limit), min(available, max(0, limit - held))
    return HostMemory(total_bytes=total, available_bytes=available)


def default_blocks(max_model_len: int, max_num_seqs: int, block_tokens: int) -> int:
    """Every sequence at half its full length, at least one whole; and the garbage block."""
    whole = -(-max_model_len // block_tokens)
    return max(-(-whole * max_num_seqs // 2), whole) + 1


def largest_len(need: MemoryNeed, limit_bytes: int) -> int:
    """The largest max_model_len whose default KV cache fits, 0 when none does."""
    blocks = (limit_bytes - need.fixed_bytes) // need.block_bytes
    fits = range(1, -(-need.max_model_len // need.block_tokens) + 1)
    seqs, tokens = need.max_num_seqs, need.block_tokens
    found = bisect_right(fits, blocks, key=lambda n: default_blocks(n * tokens, seqs, tokens))
    return min(found * tokens, need.max_model_len)


def largest_seqs(need: MemoryNeed, limit_bytes: int) -> int:
    """The largest max_num_seqs whose default KV cache fits, 0 when none does."""
    blocks = (limit_bytes - need.fixed_bytes) // need.block_bytes
    length, tokens = need.max_model_len, need.block_tokens
    fits = range(1, need.max_num_seqs + 1)
    return bisect_right(fits, blocks, key=lambda n: default_blocks(length, n, tokens))


def _advice(need: MemoryNeed, limit_bytes: int) -> str:
    """Which flag to set to what."""
    room = (limit_bytes - need.fixed_bytes) // need.block_bytes * need.block_bytes
    if room < 2 * need.block_bytes:
        return (
            f"Without any KV cache it takes {_gb(need.fixed_bytes)}: use a smaller model, a "
            "smaller --max-num-batched-tokens, or more memory."
        )
    length, seqs = largest_len(need, limit_bytes), largest_seqs(need, limit_bytes)
    ways = [
        f"--max-model-len {length} (with {need.max_num_seqs} sequences)" if length else "",
        f"--max-num-seqs {seqs} (with length {need.max_model_len})" if seqs else "",
        f"--kv-cache-memory-bytes {room} or less",
    ]
    return "Set " + ", or ".join(way for way in ways if way) + "."


def _machine(root: Path) -> tuple[int, int]:
    """(total, available) bytes."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return fields["MemTotal"], fields.get("MemAvailable", fields["MemFree"])


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's memory control groups, from its own up to the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        folder = top / path.strip("/")
        while folder.is_relative_to(top):
            yield folder
            folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _file_bytes(path: Path) -> int:
    """Page cache of a group: it gives way when memory is needed."""
    try:
        pairs = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(pairs.get(name, 0)) for name in ("active_file", "inactive_file"))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
