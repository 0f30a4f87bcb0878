"""Options: the one place that reads the environment, and the strict parser of every option.

An unknown name is an error that names the nearest known one; nothing is ignored in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = [
    "DTYPES",
    "Options",
    "artifacts_folder",
    "cache_folder",
    "environment",
    "nearest",
    "parse_options",
    "parse_size",
]

LATER = (
    "quantization", "speculative_config", "enable_lora", "override_neuron_config",
    "additional_config", "pipeline_parallel_size", "data_parallel_size",
)  # fmt: skip
DTYPES = {
    "auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float32": "float32", "float": "float32",
}  # fmt: skip

FRAMEWORK_VARIABLE = "VLLM_NEURON_FRAMEWORK"
FRAMEWORKS = {"neuronx-distributed-inference": "block", "transformers-neuronx": "contiguous"}
"""vLLM's names of its Neuron back ends, and the KV layout that each stands for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Engine options, by vLLM's names; None means: chosen from the model and the machine."""

    model: str
    """A Hugging Face folder, a .gguf file, or the name of a demo model."""
    dtype: str = "auto"
    """auto (bfloat16; float32 where the kernels are not built), bfloat16 or float32."""
    max_model_len: int | None = None
    """Tokens of a prompt and its output together; default the model's, at most 4096."""
    max_num_seqs: int = 32
    """Sequences that run at once."""
    max_num_batched_tokens: int | None = None
    """Tokens of one step; longer prompts are prefilled in chunks. Default 1024."""
    block_size: int = 32
    """Tokens of one KV block, a multiple of 32."""
    num_gpu_blocks_override: int | None = None
    """KV blocks; default enough for every sequence at half the full length, at least one whole."""
    enable_prefix_caching: bool = True
    """Reuse the KV of equal prefixes."""
    seed: int = 0
    """Seed of requests that bring none."""
    artifacts: str | None = None
    """Folder of compiled artifacts; default NEURON_COMPILED_ARTIFACTS, else beside the model."""
    require_artifacts: bool = False
    """Refuse to compile: a missing artifact is an error."""
    tensor_parallel_size: int = 1
    """Devices that share the model; only 1 is supported now."""
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
    """Options from names with dashes or underscores. Raises ConfigError."""
    names = [field.name for field in dataclasses.fields(Options)]
    fields: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in LATER:
            raise ConfigError(f"The option {key} is not supported yet.")
        if name not in names:
            raise ConfigError(f"Unknown option {key!r}.{nearest(name, [*names, *LATER])}")
        fields[name] = value
    options = Options(**fields)
    _check(options)
    return dataclasses.replace(options, kv_layout=_kv_layout(options))


def parse_size(text: str) -> int:
    """1k is 1000, 1K is 1024, 25.6k is 25600; m, g, t, M, G, T alike. Raises ConfigError."""
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    units |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        return int(number) if unit == 1 else int(Decimal(number) * unit)
    except (ValueError, ArithmeticError):
        raise ConfigError(f"{text!r} is no whole number or size such as 4096, 4k or 4K.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' or nothing."""
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" Did you mean {found[0]}?" if found else ""


def environment() -> dict[str, str]:
    """The variables that a check of the machine reports."""
    prefixes = ("NEURON_", "RANVIER_", "VLLM_", "XLA_", "JAX_", "OMP_")
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(prefixes)}


def cache_folder() -> Path:
    """Where demo models and, by default, artifacts of read-only models live."""
    root = os.environ.get("RANVIER_CACHE_ROOT") or os.environ.get("VLLM_CACHE_ROOT")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "ranvier"


def artifacts_folder(options: Options, model: Path) -> Path:
    """The folder that holds artifacts, by the option, the environment, or the model's place."""
    named = options.artifacts or os.environ.get("NEURON_COMPILED_ARTIFACTS")
    if named:
        return Path(named).expanduser()
    beside = (model if model.is_dir() else model.parent) / "neuron-compiled-artifacts"
    if beside.is_dir() or os.access(beside.parent, os.W_OK):
        return beside
    return cache_folder() / "neuron-compiled-artifacts"


def _kv_layout(options: Options) -> str:
    """The layout named by the option; auto asks the variable of vLLM's Neuron back end."""
    _choice("kv_layout", options.kv_layout, ("auto", "block", "contiguous"))
    named = os.environ.get(FRAMEWORK_VARIABLE, "")
    if options.kv_layout != "auto":
        return options.kv_layout
    if named and named not in FRAMEWORKS:
        raise ConfigError(
            f"{FRAMEWORK_VARIABLE} is {named!r}.{nearest(named, FRAMEWORKS)}",
            hint=f"Valid: {', '.join(FRAMEWORKS)}.",
        )
    return FRAMEWORKS.get(named, "block")


def _choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; supported: {', '.join(known)}.")


def _check(options: Options) -> None:
    if options.dtype not in DTYPES:
        raise ConfigError(f"dtype is {options.dtype!r}; supported: {', '.join(DTYPES)}.")
    _choice("program_family", options.program_family, ("auto", "ragged", "unragged"))
    if options.tensor_parallel_size != 1:
        raise ConfigError("tensor_parallel_size: only 1 is supported yet.")
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{name} must be a positive integer, is {value!r}.")
    if options.block_size % 32:
        raise ConfigError(f"block_size must be a multiple of 32, is {options.block_size}.")
