"""Memory of one logical core: what a build puts there, and whether it fits.

Every row carries its formula, so that a reader can check it by hand. Three rows are allowances
that no public source gives; they are named as such. Nothing was measured on hardware.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Protocol

from ranvier.core.errors import ConfigError
from ranvier.targets.axes import ALONE, Axes
from ranvier.targets.neuron.instances import GIB, Instance
from ranvier.targets.numbers import MemorySizes, ModelNumbers, WeightGroup, dtype_bytes

__all__ = [
    "SEQUENCES",
    "Degree",
    "GqaRule",
    "HeadCounts",
    "MemoryReport",
    "MemoryRow",
    "degree_costs",
    "degrees",
    "fit",
    "gqa_rule",
    "kv_bytes",
    "largest_lengths",
    "lora_row",
    "slot_bytes",
    "weight_rows",
]

PROGRAM_BYTES = 64 * 2**20
"""Allowance: instructions and DMA rings of one loaded program."""
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Counts of sequences that the largest length is told for."""
RUNTIME_BYTES = GIB
"""Allowance: runtime, collectives' buffers, fragmentation, per logical core."""


class HeadCounts(Protocol):
    """What sharding a layer depends on."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class GqaRule:
    """Heads after sharding over `t` cores: query heads padded to a multiple of t."""

    query_heads: int
    kv_heads: int
    case: Literal["mha", "sharded", "replicated", "converted to mha"]


@dataclass(frozen=True)
class MemoryRow:
    """One thing that occupies a logical core's memory."""

    kind: str
    bytes: int
    formula: str


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What one logical core holds. `problems` is empty when it fits and is legal."""

    instance: str
    tensor_parallel: int
    limit_bytes: int
    rows: tuple[MemoryRow, ...]
    problems: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def free_bytes(self) -> int:
        return self.limit_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        return not self.problems

    def bytes_of(self, prefix: str) -> int:
        """Bytes of the rows whose kind starts with `prefix`."""
        return sum(row.bytes for row in self.rows if row.kind.startswith(prefix))


@dataclass(frozen=True)
class Degree:
    """One tensor-parallel degree: legal, or why not; a note where it costs something."""

    size: int
    problem: str
    note: str

    @property
    def is_legal(self) -> bool:
        return not self.problem


def gqa_rule(heads: int, kv_heads: int, tensor_parallel: int) -> GqaRule:
    """Heads stored over all cores. Source: NxD Inference 0.9's GQA sharding rule."""
    t = tensor_parallel
    padded = math.ceil(heads / t) * t
    if kv_heads == heads:
        return GqaRule(padded, padded, "mha")
    if kv_heads % t == 0:
        return GqaRule(padded, kv_heads, "sharded")
    if t % kv_heads == 0:
        return GqaRule(padded, t, "replicated")
    return GqaRule(padded, padded, "converted to mha")


def degree_costs(model: HeadCounts, tensor_parallel: int) -> list[str]:
    """What sharding over t cores makes larger than the model is, in words."""
    t, notes = tensor_parallel, []
    rule = gqa_rule(model.heads, model.kv_heads, t)
    grown = f"the KV cache of all cores is {rule.kv_heads / model.kv_heads:.3g} times the model's"
    if rule.query_heads > model.heads:
        notes.append(f"query heads are padded from {model.heads} to {rule.query_heads}")
    if rule.case == "converted to mha":
        notes.append(f"{model.kv_heads} KV heads become {rule.kv_heads}, one a query head; {grown}")
    elif rule.case == "replicated":
        copies = rule.kv_heads // model.kv_heads
        notes.append(f"each KV head is stored {copies} times; {grown}")
    elif rule.kv_heads > model.kv_heads:
        notes.append(f"KV heads are padded from {model.kv_heads} to {rule.kv_heads}; {grown}")
    if model.intermediate % t:
        notes.append(f"the MLP is padded to a multiple of {t}")
    if model.vocab_size % t:
        notes.append(f"the vocabulary is padded to a multiple of {t}")
    return notes


def degrees(
    model: ModelNumbers,
    instance: Instance,
    *,
    logical_core_config: int | None = None,
    axes: Axes = ALONE,
) -> tuple[Degree, ...]:
    """Every degree of the chip's list, on one host or on all, with its legality here."""
    cores, listed = instance.logical_cores(logical_core_config), instance.chip.tensor_parallel
    sizes = sorted({*listed, *(t * axes.hosts for t in listed)})
    return tuple(_degree(model, instance, t, cores, axes) for t in sizes)


def fit(
    model: ModelNumbers,
    sizes: MemorySizes,
    instance: Instance,
    tensor_parallel: int,
    *,
    logical_core_config: int | None = None,
    axes: Axes = ALONE,
) -> MemoryReport:
    """The memory of one logical core. Raises ConfigError for sizes that cannot be."""
    _check(instance, tensor_parallel, logical_core_config)
    rows = [
        *weight_rows(model, sizes, tensor_parallel, axes.stages),
        _kv("kv cache", model, sizes, tensor_parallel, axes.stages),
    ]
    if sizes.lora_slots:
        rows.append(lora_row(model, sizes, tensor_parallel, axes.stages))
    if sizes.draft is not None:
        drafted = weight_rows(sizes.draft, sizes, tensor_parallel)
        weights = sum(row.bytes for row in drafted)
        rows.append(MemoryRow("draft weights", weights, "the draft's weight rows, same rules"))
        rows.append(_kv("draft kv cache", sizes.draft, sizes, tensor_parallel))
    rows.append(_activations(model, sizes, tensor_parallel))
    count = sizes.program_count
    text = f"{count} programs x 64 MiB (allowance)"
    rows.append(MemoryRow("programs", count * PROGRAM_BYTES, text))
    rows.append(MemoryRow("runtime reserve", RUNTIME_BYTES, "1 GiB (allowance)"))
    limit = instance.core_bytes(logical_core_config)
    cores = instance.logical_cores(logical_core_config)
    degree = _degree(model, instance, tensor_parallel, cores, axes)
    problems = [degree.problem] if degree.problem else []
    problems += _overflow(rows, limit, instance)
    return MemoryReport(
        instance=instance.name,
        tensor_parallel=tensor_parallel,
        limit_bytes=limit,
        rows=tuple(rows),
        problems=tuple(problems),
    )


def largest_lengths(
    model: ModelNumbers,
    sizes: MemorySizes,
    instance: Instance,
    tensor_parallel: int,
    *,
    logical_core_config: int | None = None,
    axes: Axes = ALONE,
) -> dict[int, int]:
    """max_num_seqs -> the largest max_model_len that fits with KV for every sequence; 0: none.

    Ensures: each length is a multiple of the block, at most the model's own.
    """
    block = sizes.block_tokens

    def fits(seqs: int, blocks: int) -> bool:
        length, step = blocks * block, max(sizes.max_num_batched_tokens, seqs)
        tried = dataclasses.replace(
            sizes, max_model_len=length, max_num_seqs=seqs, block_count=None,
            max_num_batched_tokens=step,
        )  # fmt: skip
        report = fit(
            model, tried, instance, tensor_parallel,
            logical_core_config=logical_core_config, axes=axes,
        )  # fmt: skip
        return report.total_bytes <= report.limit_bytes

    found: dict[int, int] = {}
    for seqs in sorted({*SEQUENCES, sizes.max_num_seqs}):
        low, high = 0, model.model_len_max // block
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(seqs, middle) else (low, middle - 1)
        found[seqs] = low * block
    return found


def slot_bytes(model: ModelNumbers, rank: int, dtype: str, tensor_parallel: int) -> float:
    """Bytes of one slot for an adapter of all linears, per core.

    Of what is cut by its outputs a core has B's part and all of A, of what is cut by its inputs A's
    part and all of B (build/lora/form.py).
    """
    t, rule = tensor_parallel, gqa_rule(model.heads, model.kv_heads, tensor_parallel)
    q, kv = (heads // t * model.head_size for heads in (rule.query_heads, rule.kv_heads))
    mlp = math.ceil(model.intermediate / t)
    parts = q + 2 * kv + q + 2 * mlp + mlp
    return model.layers * rank * (7 * model.hidden + parts) * dtype_bytes(dtype)


def _degree(model: ModelNumbers, instance: Instance, t: int, cores: int, axes: Axes) -> Degree:
    listed = instance.chip.tensor_parallel
    # A degree over all hosts is one of the list on each.
    is_listed = t in listed or (t % axes.hosts == 0 and t // axes.hosts in listed)
    problem = axes.problem(t, model.layers)
    if axes.devices(t) > cores * axes.hosts:
        problem = _exceeded(instance, t, cores, axes)
    elif not is_listed:
        problem = (
            f"tensor_parallel_size={t} is not among the degrees published for "
            f"{instance.chip.name}: {', '.join(map(str, listed))}"
        )
    return Degree(t, problem, "; ".join(degree_costs(model, t)))


def _exceeded(instance: Instance, t: int, cores: int, axes: Axes) -> str:
    if axes.devices(t) == t and axes.hosts == 1:
        return f"tensor_parallel_size={t} exceeds the {cores} logical cores of {instance.name}"
    return (
        f"tensor_parallel_size={t} x pipeline_parallel_size={axes.stages} x data_parallel_size="
        f"{axes.replicas} take {axes.devices(t)} logical cores; {axes.hosts} x {instance.name} "
        f"have {cores * axes.hosts}"
    )


def _check(instance: Instance, t: int, lnc: int | None) -> None:
    if t < 1:
        raise ConfigError(f"tensor_parallel_size must be at least 1, is {t}.")
    allowed = instance.chip.logical_core_configs
    if lnc is not None and lnc not in allowed:
        raise ConfigError(
            f"logical_nc_config={lnc} is not possible on {instance.name}: {instance.chip.name} "
            f"allows {', '.join(map(str, allowed))}."
        )


def weight_rows(
    model: ModelNumbers, sizes: MemorySizes, t: int, stages: int = 1
) -> list[MemoryRow]:
    """The weights that one core of one stage holds, by kind."""
    rule = gqa_rule(model.heads, model.kv_heads, t)
    rows: dict[str, list[tuple[float, str]]] = {}
    for group in model.groups:
        part = _share(group, rule, model, t, stages)
        bytes_each = dtype_bytes(group.dtype or sizes.dtype)
        text = f"{group.elements:,}{part[1]} x {bytes_each:g} B"
        rows.setdefault(group.kind, []).append((group.elements * part[0] * bytes_each, text))
    return [
        MemoryRow(
            f"weights: {kind}",
            math.ceil(sum(size for size, _ in parts)),
            " + ".join(text for _, text in parts),
        )
        for kind, parts in rows.items()
    ]


def _share(
    group: WeightGroup, rule: GqaRule, model: ModelNumbers, t: int, stages: int
) -> tuple[float, str]:
    """The part of a group that one core holds, as a number and as text."""
    if stages > 1 and group.is_layered:
        part, text = _share(group, rule, model, t, 1)
        return part / stages, f"{text} / {stages} stages"
    if group.sharding == "replicated":
        return 1.0, ""
    if group.kind in ("embedding", "head"):
        t *= stages  # the vocabulary is cut over the ranks of all stages
    if group.sharding == "even":
        whole = {"mlp": model.intermediate, "embedding": model.vocab_size, "head": model.vocab_size}
        size = whole.get(group.kind, t)
        padded = math.ceil(size / t) * t
        return padded / size / t, f" x {padded}/{size} / {t}" if padded > size else f" / {t}"
    stored, heads = rule.query_heads, model.heads
    if group.sharding == "kv":
        stored, heads = rule.kv_heads, model.kv_heads
    grown = "" if stored == heads else f" x {stored}/{heads} heads"
    return stored / heads / t, f"{grown} / {t}"


def kv_bytes(model: ModelNumbers, sizes: MemorySizes, t: int, stages: int = 1) -> int:
    """Block KV of one core, K and V. Source: NxD Inference 0.9's block layout."""
    per_core = gqa_rule(model.heads, model.kv_heads, t).kv_heads // t
    tokens, layers = sizes.blocks * sizes.block_tokens, model.layers / stages
    size = 2 * layers * tokens * per_core * model.head_size * dtype_bytes(sizes.kv_dtype)
    return math.ceil(size)


def _kv(kind: str, model: ModelNumbers, sizes: MemorySizes, t: int, stages: int = 1) -> MemoryRow:
    rule = gqa_rule(model.heads, model.kv_heads, t)
    per_core, each = rule.kv_heads // t, dtype_bytes(sizes.kv_dtype)
    text = (
        f"2 x {math.ceil(model.layers / stages)} layers x {sizes.blocks} blocks x "
        f"{sizes.block_tokens} tokens x {per_core} heads x {model.head_size} x {each:g} B"
    )
    return MemoryRow(kind, kv_bytes(model, sizes, t, stages), text)


def lora_row(model: ModelNumbers, sizes: MemorySizes, t: int, stages: int) -> MemoryRow:
    """The slots of one core."""
    wide = "float32" if sizes.dtype == "float32" else "bfloat16"
    each = slot_bytes(model, sizes.lora_rank, wide, t) / stages
    text = (
        f"{sizes.lora_slots} slots x rank {sizes.lora_rank} x (7 x {model.hidden} + parts of q, k, "
        "v, o, gate, up, down)"
    )
    return MemoryRow("lora slots", math.ceil(sizes.lora_slots * each), text)


def _activations(model: ModelNumbers, sizes: MemorySizes, t: int) -> MemoryRow:
    """Largest live set of a step on the reference kernels, which hold a chunk's scores whole."""
    rule = gqa_rule(model.heads, model.kv_heads, t)
    tokens, context = min(sizes.max_num_batched_tokens, sizes.max_model_len), sizes.max_model_len
    scores = tokens * context * (rule.query_heads // t) * 4
    logits = sizes.max_num_seqs * math.ceil(model.vocab_size / t) * 4
    wide = 2 * model.hidden + 2 * math.ceil(model.intermediate / t)
    stream = tokens * wide * 4
    text = (
        f"{tokens} x {context} x {rule.query_heads // t} scores x 4 B + {tokens} x {wide} x 4 B "
        f"+ {sizes.max_num_seqs} logits rows (allowance)"
    )
    return MemoryRow("activations", scores + logits + stream, text)


def _overflow(rows: list[MemoryRow], limit: int, instance: Instance) -> list[str]:
    total = sum(row.bytes for row in rows)
    if total <= limit:
        return []
    weights = sum(row.bytes for row in rows if row.kind.startswith("weights"))
    what = f"a logical core of {instance.name} has {limit / GIB:.1f} GiB"
    if weights > limit:
        return [
            f"the weights alone take {weights / GIB:.1f} GiB, {what}: more tensor parallelism, "
            "a larger instance or quantisation is needed"
        ]
    largest = max(rows, key=lambda row: row.bytes)
    return [
        f"{total / GIB:.1f} GiB are needed, {what}; the largest part is {largest.kind} with "
        f"{largest.bytes / GIB:.1f} GiB: lower max_model_len, max_num_seqs or "
        "max_num_batched_tokens, or raise tensor_parallel_size"
    ]
