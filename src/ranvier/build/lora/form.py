"""The form of adapters for a build, from the model's arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ranvier.build.shard.cut import Shard
from ranvier.build.shard.rank import Parallel, rank_spec
from ranvier.core.errors import ConfigError
from ranvier.models.spec import ArraySpec, DecoderSpec
from ranvier.nn.kernels.lora import LoraPart
from ranvier.weights.lora.form import AdapterCut, AdapterForm, AdapterModule, stack_shapes

if TYPE_CHECKING:
    from ranvier.build.programs import Sizes

__all__ = ["adapter_form", "adapter_numbers", "linear_modules", "linear_parts", "linear_shapes"]

LINEARS = ("qkv", "o", "gate_up", "down")
"""The fused linears that adapters may change."""


def adapter_form(spec: DecoderSpec, sizes: Sizes) -> AdapterForm | None:
    """What fits the slots of a build; None: it has none. Raises ConfigError: no such module."""
    if not sizes.adapter_slots:
        return None
    modules, wanted = _core_modules(spec, sizes.parallel), sizes.adapter_modules
    names = [module.name.rsplit(".", 1)[-1] for module in modules]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(
            f"lora_target_modules has {unknown[0]!r}: this model has no such linear for adapters.",
            hint=f"There are: {', '.join(names)}.",
        )
    chosen = (m for m, name in zip(modules, names, strict=True) if not wanted or name in wanted)
    return AdapterForm(
        kernels=sizes.kernels,
        dtype=sizes.dtype,
        layers=spec.layers // sizes.parallel.pipeline,
        slots=sizes.adapter_slots,
        rank_max=sizes.adapter_rank_max,
        modules=tuple(chosen),
        cores=sizes.parallel.tensor,
        stages=sizes.parallel.pipeline,
    )


def adapter_numbers(spec: DecoderSpec, sizes: Sizes) -> dict[str, Any]:
    """The form and its arrays on the device, as the manifest's `model` has them."""
    form = adapter_form(spec, sizes)
    if form is None:
        return {}
    return {"adapters": asdict(form), "adapter_stacks": stack_shapes(form)}


def linear_parts(form: AdapterForm) -> dict[str, tuple[LoraPart, ...]]:
    """The parts of each fused linear, as the kernels take them."""
    parts: dict[str, tuple[LoraPart, ...]] = {}
    for index, module in enumerate(form.modules):
        part = LoraPart(index, module.start, module.outputs)
        parts[module.linear] = (*parts.get(module.linear, ()), part)
    return parts


def linear_modules(spec: DecoderSpec) -> tuple[AdapterModule, ...]:
    """Every linear of a layer that adapters may change, by its name in the checkpoint."""
    arrays = [array for array in spec.arrays if array.name in LINEARS]
    return tuple(module for array in arrays for module in _modules(spec, array))


def _core_modules(spec: DecoderSpec, parallel: Parallel) -> list[AdapterModule]:
    """The modules as one core has them, cut as the linears themselves."""
    own = linear_modules(rank_spec(spec, parallel))
    if parallel.tensor == 1:
        return list(own)
    cores = [Shard(spec, parallel, core) for core in range(parallel.tensor)]
    found, places = list[AdapterModule](), Counter[str]()
    for module, whole in zip(own, linear_modules(spec), strict=True):
        taken = [core.runs(module.linear) for core in cores]
        assert taken[0] is not None, f"{module.linear} is not cut"
        side, place = taken[0][0], places[module.linear]
        size = whole.outputs if side == "outputs" else whole.inputs
        cut = AdapterCut(side, size, tuple(parts[place] for _, parts in filter(None, taken)))
        found.append(replace(module, cut=cut))
        places[module.linear] += 1
    return found


def linear_shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each of them in every layer, by its whole name."""
    return {
        module.name_at(layer): (module.outputs, module.inputs)
        for module in linear_modules(spec)
        for layer in range(spec.layers)
    }


def _modules(spec: DecoderSpec, array: ArraySpec) -> list[AdapterModule]:
    _, outputs, inputs = array.shape
    query, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    sizes = {"qkv": (query, kv, kv), "gate_up": (spec.intermediate,) * 2}
    parts = sizes.get(array.name, (outputs,))
    numbers = tuple(_layer_number(names[0]) for names in array.sources)
    number = f".{numbers[0]}."
    first = [name.removesuffix(".weight").replace(number, ".{}.", 1) for name in array.sources[0]]
    if len(first) != len(parts):
        return []  # stored fused: an adapter of it has another form
    numbers = () if numbers == tuple(range(len(numbers))) else numbers
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return [
        AdapterModule(name, array.name, inputs, size, start, numbers=numbers)
        for name, size, start in zip(first, parts, starts, strict=True)
    ]


def _layer_number(name: str) -> int:
    """The first whole number among the parts of a tensor's name."""
    return next(int(part) for part in name.split(".") if part.isdecimal())
