"""Plans: what a build would need and give on an instance, before anything is compiled.

Pure arithmetic over the model's counts, the catalogue and the bucket choice. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ranvier.build.buckets import token_buckets
from ranvier.build.traffic import Automatic, Traffic, automatic_unragged
from ranvier.core.buckets import BucketLimits, BucketSet
from ranvier.core.errors import ConfigError
from ranvier.core.program import program_shapes
from ranvier.targets.axes import ALONE, Axes
from ranvier.targets.collectives import Collective, step_collectives
from ranvier.targets.cpu import Machine, fit_machine, host_adapters
from ranvier.targets.neuron.compile_cost import CompileCost, compile_cost
from ranvier.targets.neuron.instances import INSTANCES, Instance
from ranvier.targets.neuron.memory import (
    SEQUENCES,
    Degree,
    MemoryReport,
    MemoryRow,
    degrees,
    fit,
    gqa_rule,
    largest_lengths,
)
from ranvier.targets.numbers import MemorySizes, ModelNumbers, dtype_bytes
from ranvier.targets.roofline import Core, Floor, decode, prefill
from ranvier.targets.system import Speed

__all__ = [
    "DegreePlan", "Estimate", "Plan", "Traded", "Wish", "plan_all", "plan_instance", "plan_machine",
]  # fmt: skip

PROMPTS = (128, 1024, 8192)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be planned: a model, its sizes and its traffic."""

    model: ModelNumbers
    sizes: MemorySizes
    traffic: Traffic | None = None
    programs_max: int = 32
    lookahead: int = 0
    tensor_parallel: int | None = None
    """None: the smallest degree that fits."""
    axes: Axes = ALONE
    logical_core_config: int | None = None
    price: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Price of an instance an hour, for the order."""

    def automatic(self) -> Automatic:
        """The bucket set for these sizes. Raises ConfigError."""
        own = self.sizes
        limits = BucketLimits(
            max_model_len=own.max_model_len, max_num_seqs=own.max_num_seqs,
            max_num_batched_tokens=own.max_num_batched_tokens, block_tokens=own.block_tokens,
            lookahead=self.lookahead,
        )  # fmt: skip
        return automatic_unragged(limits, self.traffic, budget=self.programs_max)


@dataclass(frozen=True)
class DegreePlan:
    """One tensor-parallel degree on one instance."""

    degree: Degree
    memory: MemoryReport
    decode: Floor


@dataclass(frozen=True)
class Estimate:
    """A floor of one kind of step."""

    rows: int
    tokens: int
    floor: Floor


@dataclass(frozen=True)
class Traded:
    """What the programs of one size send each other in a step, whatever their context."""

    name: str
    collectives: tuple[Collective, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known beforehand of one model in one place."""

    name: str
    """An instance, or cpu: this machine."""
    instance: Instance | None
    tensor_parallel: int
    axes: Axes
    core: Core
    memory: MemoryReport
    degrees: tuple[DegreePlan, ...]
    largest: dict[int, int]
    automatic: Automatic
    compile: CompileCost | None
    decode: tuple[Estimate, ...]
    prefill: tuple[Estimate, ...]
    traded: tuple[Traded, ...] = ()
    """Of one rank."""
    price: float | None = None
    host_adapters: MemoryRow | None = None
    """In the host's memory, beside an instance's devices."""


def plan_instance(wish: Wish, instance: Instance, automatic: Automatic | None = None) -> Plan:
    """The plan for one instance. Raises ConfigError for a degree or a size that cannot be."""
    automatic = automatic or wish.automatic()
    model, lnc, axes = wish.model, wish.logical_core_config, wish.axes
    sizes = dataclasses.replace(wish.sizes, program_count=automatic.program_count)
    table = tuple(
        _degree_plan(wish, sizes, instance, degree)
        for degree in degrees(model, instance, logical_core_config=lnc, axes=axes)
        if axes.devices(degree.size) <= instance.logical_cores(lnc) * axes.hosts
    )
    chosen = wish.tensor_parallel or _smallest(table)
    memory = fit(model, sizes, instance, chosen, logical_core_config=lnc, axes=axes)
    core = _core(wish, instance, memory)
    return Plan(
        name=instance.name,
        instance=instance,
        tensor_parallel=chosen,
        axes=axes,
        core=core,
        memory=memory,
        degrees=table,
        largest=largest_lengths(model, sizes, instance, chosen, logical_core_config=lnc, axes=axes),
        automatic=automatic,
        compile=compile_cost(
            model, automatic.program_count, vcpus=instance.vcpus, host_bytes=instance.host_bytes
        ),
        decode=_decode_floors(model, sizes, core),
        prefill=_prefill_floors(model, sizes, core),
        traded=_traded(wish, automatic.buckets, chosen),
        price=wish.price.get(instance.name),
        host_adapters=host_adapters(model, sizes),
    )


def plan_all(wish: Wish) -> list[Plan]:
    """Plans for every instance: those that fit first, then by price where given, else by HBM."""
    unknown = [name for name in wish.price if name not in INSTANCES]
    if unknown:
        raise ConfigError(f"Prices name an unknown instance {unknown[0]!r}.")
    automatic = wish.automatic()
    plans = [plan_instance(wish, instance, automatic) for instance in INSTANCES.values()]

    def order(plan: Plan) -> tuple[bool, float, int, int]:
        price = float("inf") if plan.price is None else plan.price
        hbm, host = plan.memory.limit_bytes, 0
        if plan.instance is not None:
            hbm, host = plan.instance.hbm_bytes, plan.instance.host_bytes or 0
        return not plan.memory.fits, price, hbm, host

    return sorted(plans, key=order)


def plan_machine(wish: Wish, machine: Machine, speed: Speed) -> Plan:
    """The plan for serving on this machine's CPU, whose ranks are virtual devices.

    Raises ConfigError.
    """
    model, own, axes = wish.model, wish.sizes, wish.axes
    t = 1 if wish.tensor_parallel is None else wish.tensor_parallel
    if t < 1:
        raise ConfigError(f"tensor_parallel_size must be at least 1, is {t}.")
    if axes.hosts > 1:
        raise ConfigError(f"nnodes={axes.hosts}: this is one machine.")
    buckets = BucketSet(tokens=token_buckets(own.max_num_seqs, own.max_num_batched_tokens))
    memory = fit_machine(model, own, machine.available_bytes, t, axes)
    table = memory.bytes_of("weights: embedding") if model.elements("head") else 0
    replicas = axes.replicas
    core = Core(
        bandwidth_bytes_s=speed.bandwidth_bytes_s * machine.cores,
        flops_s=speed.flops_s * _matrix_ratio(machine, own.dtype),
        weight_bytes=(memory.bytes_of("weights") - table) // replicas,
        kv_heads=gqa_rule(model.heads, model.kv_heads, t).kv_heads,
    )
    return Plan(
        name="cpu",
        instance=None,
        tensor_parallel=t,
        axes=axes,
        core=core,
        memory=memory,
        degrees=(),
        largest=_largest_machine(wish, own, machine.available_bytes),
        automatic=Automatic(buckets, 0.0, 0.0),
        compile=None,
        decode=_decode_floors(model, own, core),
        prefill=_prefill_floors(model, own, core),
        traded=_traded(wish, buckets, t),
    )


def _traded(wish: Wish, buckets: BucketSet, tensor: int) -> tuple[Traded, ...]:
    """Contexts send the same: one entry for those that differ in nothing else."""
    each = 4 if wish.sizes.dtype == "float32" else 2
    found: dict[str, tuple[Collective, ...]] = {}
    for shape in program_shapes(buckets, wish.sizes.max_num_seqs):
        name = dataclasses.replace(shape, context=0).name
        found[name] = step_collectives(wish.model, shape, tensor, wish.axes, each)
    return tuple(Traded(name, collectives) for name, collectives in found.items() if collectives)


def _decode_floors(model: ModelNumbers, sizes: MemorySizes, core: Core) -> tuple[Estimate, ...]:
    """One row and all rows, at half the context and at the whole."""
    whole, floors = sizes.max_model_len, []
    for rows in sorted({1, sizes.max_num_seqs}):
        for context in (whole // 2, whole):
            floor = decode(model, core, kv_dtype=sizes.kv_dtype, rows=rows, context=context)
            floors.append(Estimate(rows, context, floor))
    return tuple(floors)


def _prefill_floors(model: ModelNumbers, sizes: MemorySizes, core: Core) -> tuple[Estimate, ...]:
    prompts = sorted({min(tokens, sizes.max_model_len) for tokens in PROMPTS})
    return tuple(Estimate(1, tokens, prefill(model, core, tokens=tokens)) for tokens in prompts)


def _matrix_ratio(machine: Machine, dtype: str) -> int:
    """Peak of the bfloat16 kernels over that of AVX-512 f32: 1024 and 128 FLOP a cycle over 64."""
    if dtype == "float32":
        return 1
    return 16 if "amx_bf16" in machine.features else 2 if "avx512_bf16" in machine.features else 1


def _largest_machine(wish: Wish, sizes: MemorySizes, available: int) -> dict[int, int]:
    """max_num_seqs -> the largest max_model_len with KV for every sequence."""
    model, found = wish.model, {}
    block = sizes.block_tokens
    for seqs in sorted({*SEQUENCES, sizes.max_num_seqs}):
        bare = dataclasses.replace(sizes, max_num_seqs=seqs, block_count=0)
        t, axes = wish.tensor_parallel or 1, wish.axes
        free = fit_machine(model, bare, available, t, axes).free_bytes
        heads = gqa_rule(model.heads, model.kv_heads, t).kv_heads * axes.replicas
        each = 2 * model.layers * heads * model.head_size * dtype_bytes(sizes.kv_dtype)
        blocks = int(free // (each * block)) - 1
        found[seqs] = max(0, min(model.model_len_max // block, blocks // seqs)) * block
    return found


def _degree_plan(wish: Wish, sizes: MemorySizes, instance: Instance, degree: Degree) -> DegreePlan:
    lnc = wish.logical_core_config
    memory = fit(wish.model, sizes, instance, degree.size, logical_core_config=lnc, axes=wish.axes)
    core = _core(wish, instance, memory)
    floor = decode(
        wish.model, core, kv_dtype=sizes.kv_dtype, rows=1, context=sizes.max_model_len // 2
    )
    return DegreePlan(degree, memory, floor)


def _core(wish: Wish, instance: Instance, memory: MemoryReport) -> Core:
    model, lnc, t = wish.model, wish.logical_core_config, memory.tensor_parallel
    # The embedding table is looked up, not read: unless it is the head as well.
    table, head = memory.bytes_of("weights: embedding"), memory.bytes_of("weights: head")
    layers = memory.bytes_of("weights") - table - head
    return Core(
        bandwidth_bytes_s=instance.core_bandwidth_bytes_s(lnc),
        flops_s=instance.core_flops(wish.sizes.dtype, lnc),
        # Stages take their turns: a step reads the layers of each.
        weight_bytes=wish.axes.stages * layers + (head or table),
        kv_heads=gqa_rule(model.heads, model.kv_heads, t).kv_heads // t,
        tensor_parallel=t,
    )


def _smallest(table: tuple[DegreePlan, ...]) -> int:
    """The smallest degree that fits; where none does, the largest legal one."""
    fitting = [entry.degree.size for entry in table if entry.memory.fits]
    legal = [entry.degree.size for entry in table if entry.degree.is_legal]
    return fitting[0] if fitting else (legal[-1] if legal else 1)
