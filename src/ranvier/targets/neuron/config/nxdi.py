"""Folders compiled by NxD Inference: read their configuration, never their binary.

`model.pt` is a TorchScript archive, a zip of pickles around executables of another stack: it is
neither opened nor unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.field import Field, fits, plain_dtype
from ranvier.targets.neuron.config.speculation import OPTION as SPECULATIVE
from ranvier.targets.neuron.config.speculation import SWITCHES, join_speculation
from ranvier.targets.neuron.config.table import CHILDREN, SECTIONS

__all__ = ["REFUSAL", "NxdiFolder", "is_nxdi", "read_nxdi"]

CONFIG = "neuron_config.json"
BINARY = "model.pt"
CONFIG_BYTES_MAX = 16 * 2**20
REFUSAL = (
    f"{BINARY} is a TorchScript archive of NxD Inference, pickles around executables that another "
    "runtime loads; Ranvier never opens it"
)

OPTIONS = {
    "seq_len": "max_model_len", "tkg_batch_size": "max_num_seqs", "batch_size": "max_num_seqs",
    "max_context_length": "max_num_batched_tokens", "torch_dtype": "dtype",
    "tp_degree": "tensor_parallel_size", "is_prefix_caching": "enable_prefix_caching",
    "async_mode": "async_scheduling",
}  # fmt: skip
"""Fields that become options; of two for one option the first counts."""
BLOCK_OPTIONS = {"pa_block_size": "block_size", "pa_num_blocks": "num_gpu_blocks_override"}
"""Fields that say something with the block layout only."""
LISTS = (
    "enable_bucketing", "context_encoding_buckets", "token_generation_buckets", "prefix_buckets",
    "token_generation_batches",
)  # fmt: skip
FUSED = "fused_spec_config"
"""Beside neuron_config: the draft of fused speculation."""
SAMPLING = ("do_sample", "top_k", "top_p", "temperature")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class NxdiFolder:
    """What a compiled folder was made for, in Ranvier's terms."""

    path: Path
    model: str
    """The model's name as it was recorded, or nothing."""
    options: dict[str, Any]
    override: dict[str, Any]
    left_out: tuple[str, ...]
    """Settings that are not taken over, each with the reason."""


def is_nxdi(folder: Path) -> bool:
    """Whether a folder holds a build of NxD Inference."""
    return (folder / CONFIG).is_file() and (folder / BINARY).is_file()


def read_nxdi(folder: Path) -> NxdiFolder:
    """Read the configuration of a compiled folder. Raises ConfigError."""
    whole = _load(folder / CONFIG)
    stored = whole.get("neuron_config")
    if not isinstance(stored, Mapping):
        raise ConfigError(
            f"{folder / CONFIG}: has no dictionary neuron_config.",
            hint="Name a folder that NxD Inference compiled.",
        )
    fields = SECTIONS["NeuronConfig"]
    good = {
        name: value for name, value in stored.items()
        if name in fields and value is not None and fits(fields[name], value)
    }  # fmt: skip
    name = whole.get("_name_or_path")
    guessing, without_draft = _speculation(good, whole.get(FUSED))
    return NxdiFolder(
        folder,
        name if isinstance(name, str) else "",
        {**_options(good), **guessing},
        _override(good),
        (*_left_out(stored), *without_draft),
    )


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes.")
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}.") from error
    if not isinstance(whole, Mapping):
        raise ConfigError(f"{path}: must hold a JSON object.")
    return whole


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    names = dict(OPTIONS)
    if stored.get("is_block_kv_layout"):
        names |= BLOCK_OPTIONS
    options: dict[str, Any] = {}
    for name, option in names.items():
        if name in stored:
            value = stored[name]
            options.setdefault(option, plain_dtype(value) if name == "torch_dtype" else value)
    if options.get("dtype") not in DTYPES:
        options.pop("dtype", None)
    return options


def _speculation(stored: Mapping[str, Any], fused: Any) -> tuple[dict[str, Any], list[str]]:
    """speculative_config of a folder that names its draft; else what is left out, and why."""
    wanted = [name for name in ("speculation_length", *SWITCHES) if stored.get(name)]
    if not wanted:
        return {}, []
    draft = fused.get("draft_model_path") if isinstance(fused, Mapping) else None
    if not isinstance(draft, str) or not draft:
        reason = f"the folder names no draft ({FUSED}.draft_model_path); give {SPECULATIVE}"
        return {}, [f"{name} = {stored[name]!r}: {reason}" for name in wanted]
    config, _ = join_speculation(stored, {"model": draft}, "")
    assert config is not None
    config.setdefault("method", "draft_model")
    return {SPECULATIVE: config}, []


def _override(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What has no option of its own, by the names that it has there."""
    override = {name: stored[name] for name in LISTS if name in stored}
    if override.get("enable_bucketing") is False:
        override = {"enable_bucketing": False}
    section = stored.get("on_device_sampling_config")
    known = SECTIONS["OnDeviceSamplingConfig"]
    if isinstance(section, Mapping) and not section.get("dynamic"):
        sampling = {n: section[n] for n in SAMPLING if n in section and fits(known[n], section[n])}
        if sampling:
            override["on_device_sampling_config"] = sampling
    return override


def _left_out(stored: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in sorted(stored.items()):
        field = SECTIONS["NeuronConfig"].get(name)
        if field is None:
            lines.append(f"{name} = {value!r}: no field that Ranvier knows")
        elif not fits(field, value):
            lines.append(f"{name} = {value!r}: not of the type of that field")
        elif field.status == "refused" and not _is_idle(field, value):
            lines.append(f"{name} = {value!r}: {field.note}")
        elif name == "torch_dtype" and plain_dtype(value) not in DTYPES:
            lines.append(f"{name} = {value!r}: supported are {', '.join(DTYPES)}")
    return lines


def _is_idle(field: Field, value: Any) -> bool:
    """Whether a stored value of a refused field changes nothing; files hold every default."""
    if field.asks_nothing(value) or value in ({}, []):
        return True
    child = CHILDREN.get(("NeuronConfig", field.name))
    if child is None or not isinstance(value, Mapping):
        return False
    return all(
        n in SECTIONS[child] and SECTIONS[child][n].asks_nothing(v) for n, v in value.items()
    )
