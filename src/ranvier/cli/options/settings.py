"""Options, and the one place that reads the environment and config files.

Parsing is strict: an unknown name is an error that names the nearest known one; a known option that
changes nothing here is announced; nothing is ignored in silence. The order is: command line or
keyword, config file, RANVIER_X, VLLM_X, default.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.cli.options.adapters import AdapterOptions, check_adapters
from ranvier.cli.options.known import ENVIRONMENT, KNOWN
from ranvier.cli.options.media import MediaOptions, check_media_options
from ranvier.cli.options.speculative import read_speculative
from ranvier.cli.options.values import check_counts, read_value
from ranvier.core.errors import ConfigError

__all__ = [
    "DTYPES",
    "KV_CACHE_DTYPES",
    "Options",
    "artifact_roots",
    "artifacts_default",
    "binary_homes",
    "bucket_lists",
    "cache_artifacts",
    "cache_folder",
    "client_key",
    "environment",
    "given_fields",
    "is_writable",
    "kv_layout",
    "logical_nc_config",
    "machine_variables",
    "nearest",
    "parse_options",
    "read_config",
    "say",
    "settle",
]

DTYPES = {
    "auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float32": "float32", "float": "float32",
}  # fmt: skip
KV_CACHE_DTYPES = {
    "auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32",
    "fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8",
}  # fmt: skip
NEURON = ("override_neuron_config", "additional_config", "from_nxdi")
BUCKET_VARIABLES = ("NEURON_CONTEXT_LENGTH_BUCKETS", "NEURON_TOKEN_GEN_BUCKETS")
CONFIG_BYTES_MAX = 2**20
OWN_VARIABLES = ("cache_root", "cluster_key")

LOGICAL_VARIABLE = "NEURON_LOGICAL_NC_CONFIG"
FRAMEWORK_VARIABLE = "VLLM_NEURON_FRAMEWORK"
FRAMEWORKS = {"neuronx-distributed-inference": "block", "transformers-neuronx": "contiguous"}
"""vLLM's names of its Neuron back ends, and the KV layout that each stands for."""


@dataclass(frozen=True, kw_only=True)
class Options(AdapterOptions, MediaOptions):
    """Engine options, by vLLM's names; None means: chosen from the model and the machine."""

    model: str
    """A Hugging Face folder, a .gguf file, the name of a demo model, or a hub id (org/name)."""
    tokenizer: str | None = None
    """Another folder, file or hub id to take the tokenizer and the chat template from."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of a hub id given as tokenizer."""
    download_dir: str | None = None
    """Folder for files of the hub; default the hub's own cache."""
    hf_overrides: dict[str, Any] | None = None
    """Fields that replace those of the model's config.json."""
    dtype: str = "auto"
    """auto (bfloat16; float32 where the kernels are not built), bfloat16 or float32."""
    quantization: str | None = None
    """Whole-number weights: int8, int8-dynamic, int4 and others (docs/quantisation.md) quantise
    while packing; none: dense, in dtype; default: as the checkpoint has them (float32: dense)."""
    kv_cache_dtype: str = "auto"
    """Of the KV cache: auto (that of dtype), bfloat16, fp8 (e4m3; also fp8_e4m3) or int8."""
    max_model_len: int | None = None
    """Tokens of a prompt and its output together; default the model's, at most 4096; auto or -1:
    the model's, or what fits in memory."""
    max_num_seqs: int = 32
    """Sequences that run at once."""
    max_num_batched_tokens: int | None = None
    """Tokens of one step; longer prompts are prefilled in chunks. Default 1024."""
    block_size: int = 32
    """Tokens of one KV block, a multiple of 32."""
    num_gpu_blocks_override: int | None = None
    """KV blocks, exactly; the device is whatever the target is."""
    kv_cache_memory_bytes: int | None = None
    """Bytes of the KV cache (sizes such as 4G); default: every sequence at half its full length."""
    gpu_memory_utilization: float | None = None
    """Share of the memory (a CPU's: the machine's or the container's) that everything together may
    take; given, the KV cache grows within it, at most to every sequence at its full length."""
    enable_prefix_caching: bool = True
    """Reuse the KV of equal prefixes."""
    seed: int = 0
    """Seed of requests that bring none."""
    chat_template: str | None = None
    """A file with a chat template, or the template itself, instead of the model's."""
    generation_config: str = "auto"
    """Where default sampling parameters come from: auto (the model), vllm (none), or a folder."""
    override_generation_config: dict[str, Any] | None = None
    """Sampling parameters that replace those of the generation config."""
    artifacts: str | None = None
    """Folder of compiled artifacts; default NEURON_COMPILED_ARTIFACTS, else beside the model."""
    require_artifacts: bool = False
    """Refuse to compile: a missing or damaged artifact is an error."""
    tensor_parallel_size: int = 1
    """Devices that share each layer; on the cpu target that many virtual ones are made."""
    pipeline_parallel_size: int = 1
    """Stages that share the layers, each of tensor_parallel_size devices; it divides the layers."""
    sequence_parallel: bool = False
    """Cut norms and the residual stream along the tokens of a step over its devices."""
    logical_nc_config: int | None = None
    """Neuron: physical cores of a logical one, 1 or 2; default NEURON_LOGICAL_NC_CONFIG, else the
    target's own."""
    async_scheduling: bool = False
    """Plan and launch the next step before the result of the last one is read."""
    speculative_config: dict[str, Any] | None = None
    """How tokens are guessed ahead and verified (docs/speculation.md); default: not at all."""
    override_neuron_config: dict[str, Any] | None = None
    """Settings by the names of NxD Inference's NeuronConfig (docs/neuron-config.md)."""
    additional_config: dict[str, Any] | None = None
    """Settings of vLLM's Neuron plug-ins: override_neuron_config or neuron_config, nested."""
    from_nxdi: str | None = None
    """A folder that NxD Inference compiled: its settings are the defaults of this run."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or neuron."""
    target: str | None = None
    """What to compile for, where the device does not tell: cpu, cuda, neuron-inf2, neuron-trn1,
    neuron-trn2 or neuron-trn3."""
    program_family: str = "auto"
    """ragged (one program takes any mix of prefill and decode), unragged (prefill of one sequence
    and decode of many are programs of their own) or auto: ragged where the target and the KV layout
    are."""
    kv_layout: str = "auto"
    """block (KV in blocks, shared by prefix), contiguous (one region a sequence, unragged only) or
    auto: as VLLM_NEURON_FRAMEWORK says, else block."""


def parse_options(given: Mapping[str, Any]) -> Options:
    """Options from names with dashes or underscores, then the environment. Raises ConfigError."""
    fields = settle(given, Options)
    for name, value in environment(option_names(Options)).items():
        fields.setdefault(name, value)
    hints = typing.get_type_hints(Options)
    fields = {n: read_value(n, hints[n], value) for n, value in fields.items()}
    if any(fields.get(name) is not None for name in NEURON):
        from ranvier.cli.neuron import apply_neuron

        fields = apply_neuron(fields, bucket_lists(), say)
    options = Options(**fields)
    _check(options)
    return options


def settle(given: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """The fields of `kinds` in `given`; known options are announced or refused, others refused."""
    names = option_names(*kinds)
    fields: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in names:
            fields[name] = value
        elif name in KNOWN:
            _treat(name, value)
        else:
            raise ConfigError(f"Unknown option {key!r}.{nearest(name, [*names, *KNOWN])}")
    return fields


def given_fields(source: Any) -> dict[str, Any]:
    """The options that a mapping, or a dataclass such as vLLM's EngineArgs, sets."""
    if isinstance(source, Mapping):
        return dict(source)
    if not dataclasses.is_dataclass(source) or isinstance(source, type):
        kind = type(source).__name__
        raise ConfigError(f"Engine arguments must be a dataclass or a mapping, are {kind}.")
    found = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return {f.name: found[f.name] for f in dataclasses.fields(source) if not _is_default(f, found)}


def _is_default(field: dataclasses.Field[Any], found: Mapping[str, Any]) -> bool:
    """Whether a field holds what it has when nothing is given."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return bool(found[field.name] == default)


def option_names(*kinds: type) -> list[str]:
    """The fields of options dataclasses."""
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' or nothing."""
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" Did you mean {found[0]}?" if found else ""


def environment(names: Iterable[str], variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Options set by RANVIER_X, else by a documented VLLM_X, as text. Raises ConfigError."""
    from ranvier.cli.options.cluster import ClusterOptions
    from ranvier.cli.options.front import FrontOptions

    known = [*option_names(Options, FrontOptions, ClusterOptions), *OWN_VARIABLES]
    own = {k[8:].lower(): v for k, v in variables.items() if k.startswith("RANVIER_")}
    for name in own:
        if name not in known:
            hint = nearest("RANVIER_" + name.upper(), ["RANVIER_" + n.upper() for n in known])
            raise ConfigError(f"Unknown variable RANVIER_{name.upper()}.{hint}")
    wanted = set(names)
    found = {name: value for name, value in own.items() if name in wanted and value}
    for variable, (target, note) in ENVIRONMENT.items():
        if variable not in variables:
            continue
        if target is None:
            say(f"{variable} has no effect: {note}")
        elif target in wanted and target not in found:
            say(f"{target} is taken from {variable}")
            found[target] = variables[variable] + note
    return found


def read_config(path: Path) -> dict[str, tuple[Any, str]]:
    """A YAML file's options: name to (value, "file, line n"). Raises ConfigError."""
    import yaml

    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes.")
        text = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold options by name, holds {type(values).__name__}.")
    assert isinstance(node, yaml.MappingNode)
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return {
        key.replace("-", "_"): (value, f"{path}, line {lines[key]}")
        for key, value in values.items()
    }


def machine_variables(*prefixes: str) -> dict[str, str]:
    """The variables of these prefixes, else those that a check of the machine reports."""
    prefixes = prefixes or ("NEURON_", "RANVIER_", "VLLM_", "XLA_", "JAX_", "OMP_")
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(prefixes)}


def cache_folder() -> Path:
    """Where demo models and, by default, artifacts of read-only models live."""
    root = os.environ.get("RANVIER_CACHE_ROOT") or os.environ.get("VLLM_CACHE_ROOT")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "ranvier"


def client_key() -> str | None:
    """The key that clients bring when none is named."""
    return os.environ.get("OPENAI_API_KEY")


def artifact_roots(options: Options, model: Path) -> list[Path]:
    """Folders that may hold the artifact; the first is written to, the others only read."""
    named = options.artifacts or os.environ.get("NEURON_COMPILED_ARTIFACTS")
    home = model if model.is_dir() else model.parent
    root = Path(named).expanduser() if named else home / "neuron-compiled-artifacts"
    return [root] if is_writable(root) else [cache_artifacts(), root]


def binary_homes(folder: Path) -> list[Path]:
    """Roots that may hold a device's binaries of an artifact; the first is written to."""
    root = folder.resolve().parent
    return [root, cache_artifacts()] if is_writable(root) else [cache_artifacts(), root]


def artifacts_default() -> Path:
    """The folder of artifacts that no option and no model names."""
    named = os.environ.get("NEURON_COMPILED_ARTIFACTS")
    return Path(named).expanduser() if named else cache_artifacts()


def cache_artifacts() -> Path:
    """Where artifacts lie whose own place can't be written to."""
    return cache_folder() / "neuron-compiled-artifacts"


def bucket_lists(variables: Mapping[str, str] = os.environ) -> dict[str, tuple[int, ...]]:
    """The bucket lists of transformers-neuronx's variables. Raises ConfigError."""
    found = {}
    for name in BUCKET_VARIABLES:
        text = variables.get(name, "").strip()
        if not text:
            continue
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(
                f"{name} is {text!r}: not positive integers with commas between.",
                hint=f"For example {name}=128,512,2048.",
            )
        found[name] = tuple(int(part) for part in parts)
    return found


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it is not there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def kv_layout(options: Options) -> str:
    """The layout named by the option; auto asks the variable of vLLM's Neuron back end."""
    named = os.environ.get(FRAMEWORK_VARIABLE, "")
    if options.kv_layout != "auto":
        return options.kv_layout
    if named and named not in FRAMEWORKS:
        raise ConfigError(
            f"{FRAMEWORK_VARIABLE} is {named!r}.{nearest(named, FRAMEWORKS)}",
            hint=f"Valid: {', '.join(FRAMEWORKS)}.",
        )
    return FRAMEWORKS.get(named, "block")


def logical_nc_config(options: Options) -> int | None:
    """Physical cores of a logical one: the option, else Neuron's variable. Raises ConfigError."""
    if options.logical_nc_config is not None:
        return options.logical_nc_config
    named = os.environ.get(LOGICAL_VARIABLE, "").strip()
    if named and named not in ("1", "2"):
        raise ConfigError(f"{LOGICAL_VARIABLE} is {named!r}; it must be 1 or 2.")
    return int(named) if named else None


def say(line: str) -> None:
    """One line for the user, on stderr."""
    print(f"ranvier: {line}", file=sys.stderr, flush=True)


def _treat(name: str, value: Any) -> None:
    """Announce a known option without effect; refuse one that can't be honoured."""
    if value is None:
        return
    known = KNOWN[name]
    if known.accepted is None or value in known.accepted:
        say(f"{name}={value} changes nothing: {known.reason}")
        return
    told = ", ".join(map(str, known.accepted))
    raise ConfigError(
        f"{name}={value!r} is not supported: {known.reason}.",
        hint=f"Accepted here: {told}." if told else f"Leave {name} out.",
    )


def _choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; supported: {', '.join(known)}.")


def _check(options: Options) -> None:
    if options.dtype not in DTYPES:
        raise ConfigError(f"dtype is {options.dtype!r}; supported: {', '.join(DTYPES)}.")
    _choice("kv_cache_dtype", options.kv_cache_dtype, KV_CACHE_DTYPES)
    _choice("kv_layout", options.kv_layout, ("auto", "block", "contiguous"))
    kv_layout(options)
    _choice("program_family", options.program_family, ("auto", "ragged", "unragged"))
    check_counts(options)
    if options.num_gpu_blocks_override and options.kv_cache_memory_bytes:
        raise ConfigError("Give num_gpu_blocks_override or kv_cache_memory_bytes, not both.")
    read_speculative(options.speculative_config, say)
    check_adapters(options)
    check_media_options(options, say)
