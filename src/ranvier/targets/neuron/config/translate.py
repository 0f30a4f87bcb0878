"""From the configurations of Neuron's stacks to options by their own names.

Everything is checked before anything is built, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ranvier.core.buckets import BucketRequest, Listed
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.adapters import OPTION as ADAPTERS
from ranvier.targets.neuron.config.adapters import join_adapters
from ranvier.targets.neuron.config.field import plain_dtype
from ranvier.targets.neuron.config.read import (
    Given,
    Problem,
    doubled,
    is_deep,
    merge,
    read_section,
)
from ranvier.targets.neuron.config.rules import (
    PLUGIN_RULES,
    RULES,
    broken,
    effective,
    effective_plugin,
)
from ranvier.targets.neuron.config.speculation import OPTION as SPECULATIVE
from ranvier.targets.neuron.config.speculation import join_speculation
from ranvier.targets.neuron.quantisation import neuron_quantisation

__all__ = ["Translation", "translate"]

OVERRIDE = "override_neuron_config"
PLUGIN = "neuron_config"
VISION = ("vision_neuron_config", "encoder_neuron_config")
DTYPES = {"bf16": "bfloat16", "float": "float32", "fp32": "float32", "half": "float16"}

AXES: dict[str, tuple[str, ...]] = {
    "prefill_tokens": (
        f"{OVERRIDE}.context_encoding_buckets", f"{PLUGIN}.num_batched_tokens_buckets",
        f"{OVERRIDE}.buckets", "NEURON_CONTEXT_LENGTH_BUCKETS",
    ),
    "decode_rows": (f"{OVERRIDE}.token_generation_batches", f"{PLUGIN}.num_seqs_buckets"),
    "contexts": (
        f"{OVERRIDE}.token_generation_buckets", f"{PLUGIN}.decode_context_length_buckets",
        f"{OVERRIDE}.buckets", "NEURON_TOKEN_GEN_BUCKETS",
    ),
    "prefixes": (f"{OVERRIDE}.prefix_buckets",),
    "pictures": tuple(f"{name}.num_vision_tokens_buckets" for name in VISION),
}  # fmt: skip
"""Keys that list the buckets of an axis, the first given one counts."""
RIVALS = 2
"""The first two keys of an axis say the same in two dialects: both given, they must agree."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What the configurations ask for, in Ranvier's own terms."""

    options: dict[str, Any] = field(default_factory=dict)
    buckets: BucketRequest = BucketRequest()
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Those to serve from the start: name to folder."""
    notices: tuple[str, ...] = ()


def translate(
    additional: Mapping[str, Any] | None,
    override: Mapping[str, Any] | None,
    plain: Mapping[str, Any],
    listed: Mapping[str, tuple[int, ...]],
) -> Translation:
    """Options, buckets and notices of `additional_config` and `override_neuron_config`.

    `plain` are the options given by their own names, `listed` the bucket lists of environment
    variables. Raises one ConfigError with every problem.
    """
    for name, part in (("additional_config", additional), (OVERRIDE, override)):
        if is_deep(part):
            raise ConfigError(f"{name}: dictionaries are nested deeper than any section is.")
    own, plugin, beside, problems = _sections(additional or {}, override or {})
    given, found = read_section("NeuronConfig", own, OVERRIDE)
    more, wrong = read_section("neuron_config", plugin, PLUGIN)
    more += beside
    problems += found + wrong
    values = {g.field.name: g.value for g in given if g.section == "NeuronConfig"}
    problems += broken(RULES, values, effective(_typed(values), plain), OVERRIDE)
    problems += _unfit_quantisation(values)
    values = {g.field.name: g.value for g in more if g.section == "neuron_config"}
    problems += broken(PLUGIN_RULES, values, effective_plugin(values, plain), PLUGIN)
    lists = dict(listed)
    lists.update({g.key: tuple(g.value) for g in [*given, *more] if g.field.kind == "sizes"})
    buckets, notices = _buckets(lists, given, problems)
    settings = [_setting(g) for g in [*given, *more] if _is_option(g)]
    sampling = _sampling([*given, *more])
    if sampling:
        settings.append((OVERRIDE, "override_generation_config", sampling))
    options = _settle(settings, plain, problems)
    values = {g.field.name: g.value for g in given if g.section == "NeuronConfig"}
    joined, wrong = join_speculation(values, plain.get(SPECULATIVE), OVERRIDE)
    problems += wrong
    if joined is not None:
        options[SPECULATIVE] = joined
    adapters, wrong = join_adapters(given)
    problems += wrong
    rows = buckets.decode_rows
    if rows and rows.key.startswith(PLUGIN) and "max_num_seqs" not in plain:
        options.setdefault("max_num_seqs", rows.sizes[-1])
    if problems:
        raise ConfigError("\n".join(_report(problems)), hint="docs/neuron-config.md has each key.")
    kept = [f"{g.key}: {g.field.note}" for g in [*given, *more] if _is_told(g)]
    return Translation(options, buckets, adapters, (*notices, *kept))


def _sections(
    additional: Mapping[str, Any], override: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[Given], list[Problem]]:
    """The merged NeuronConfig, the plug-in's section, what stands beside them, and problems."""
    top = merge({}, additional)
    problems = doubled(additional, "additional_config")
    parts: dict[str, Mapping[str, Any]] = {}
    for name in (OVERRIDE, PLUGIN, *VISION):
        part = top.pop(name, None) or {}
        if not isinstance(part, Mapping):
            problems.append(Problem(f"additional_config.{name}", part, "must be a dictionary.", ""))
            part = {}
        parts[name] = part
    if not isinstance(override, Mapping):
        problems.append(Problem(OVERRIDE, override, "must be a dictionary.", ""))
        override = {}
    problems += doubled(override, OVERRIDE)
    beside, found = read_section("additional_config", top, "additional_config")
    problems += found
    for name in VISION:
        more, found = read_section("vision_neuron_config", parts[name], name)
        beside, problems = beside + more, problems + found
    return merge(parts[OVERRIDE], override), merge({}, parts[PLUGIN]), beside, problems


def _unfit_quantisation(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the fields that neuron_quantisation reads when a model is opened."""
    try:
        neuron_quantisation(values)
    except ConfigError as error:
        name = error.message.split()[0].rstrip(":")
        if name == "quantized":  # a rule between fields says so already
            return []
        return [Problem(f"{OVERRIDE}.{name}", values.get(name), error.message, error.hint)]
    return []


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("torch_dtype", "attention_dtype")
    return {k: plain_dtype(v) if k in names else v for k, v in values.items()}


def _is_option(given: Given) -> bool:
    own = ("buckets", "override_generation_config", "quantization", SPECULATIVE, ADAPTERS)
    if given.field.option == "limit_mm_per_prompt" and not given.value:
        return False
    return given.field.status == "honoured" and given.field.option not in own


def _is_told(given: Given) -> bool:
    """Whether a value has to be announced: it asks for something that holds without it."""
    return given.field.status == "satisfied" and given.value not in (given.field.default, {})


def _setting(given: Given) -> tuple[str, str, Any]:
    value = given.value
    if given.field.kind == "dtype":
        name = plain_dtype(value)
        value = DTYPES.get(name, name)
    if given.field.option == "kv_cache_dtype":
        value = "fp8" if value else "auto"
    if given.field.option == "limit_mm_per_prompt":
        value = {"image": 0}
    if given.field.option == "enable_lora":
        value = True
    if given.field.option == "target":
        value = f"neuron-{value.removeprefix('neuron-')}"
    return given.key, given.field.option, value


def _sampling(given: list[Given]) -> dict[str, Any]:
    """Default sampling parameters of the on-device sampling sections."""
    found: dict[str, Any] = {}
    for one in given:
        if one.field.option != "override_generation_config" or one.field.kind == "dict":
            continue
        name, value = one.field.name, one.value
        if name in ("do_sample", "all_greedy"):
            if value is (name == "all_greedy"):
                found["temperature"] = 0.0
        elif name != "temperature" or found.get("temperature") != 0.0:
            found[name] = float(value) if name == "temperature" else value
    return found


def _settle(
    settings: list[tuple[str, str, Any]], plain: Mapping[str, Any], problems: list[Problem]
) -> dict[str, Any]:
    """One value an option; two that differ are a problem that names both."""
    settled: dict[str, tuple[str, Any]] = {}
    for name, value in plain.items():
        if not (name == "dtype" and value == "auto"):
            settled[name] = (name, DTYPES.get(value, value) if name == "dtype" else value)
    options: dict[str, Any] = {}
    for key, option, value in settings:
        other = settled.setdefault(option, (key, value))
        if other[1] == value:
            options[option] = value
        elif option == "override_generation_config":
            options[option] = {**value, **other[1]}
        else:
            limit = f"contradicts {other[0]} = {other[1]!r}."
            problems.append(Problem(key, value, limit, "Give one of them, or make them equal."))
    return options


def _buckets(
    lists: Mapping[str, tuple[int, ...]], given: list[Given], problems: list[Problem]
) -> tuple[BucketRequest, list[str]]:
    chosen: dict[str, Listed] = {}
    notices = []
    for axis, keys in AXES.items():
        present = [key for key in keys if key in lists]
        rivals = [key for key in present if key in keys[:RIVALS]]
        if len(rivals) > 1 and set(lists[rivals[0]]) != set(lists[rivals[1]]):
            limit = f"contradicts {rivals[0]} = {list(lists[rivals[0]])}."
            fix = "Give one of them, or make them equal."
            problems.append(Problem(rivals[1], list(lists[rivals[1]]), limit, fix))
        if not present:
            continue
        sizes = lists[present[0]]
        ordered = tuple(sorted(set(sizes)))
        if ordered != sizes:
            notices.append(f"{present[0]} is sorted to {list(ordered)}")
        chosen[axis] = Listed(present[0], ordered)
        others = [key for key in present[1:] if key not in keys[:RIVALS]]
        notices += [f"{key} is not used for {axis}: {present[0]} says it" for key in others]
    single = [g.key for g in given if g.field.name == "enable_bucketing" and g.value is False]
    return BucketRequest(**chosen, single=single[0] if single else ""), notices


def _report(problems: list[Problem]) -> list[str]:
    texts = list(dict.fromkeys(str(problem) for problem in problems))
    if len(texts) == 1:
        return texts
    return [f"{len(texts)} settings are wrong:", *(f"  {text}" for text in texts)]
