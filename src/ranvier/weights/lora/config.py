"""adapter_config.json of PEFT: what of it Ranvier takes, and what it refuses by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.core.errors import AdapterError

__all__ = ["LoraConfig", "read_config"]

CONFIG_BYTES_MAX = 2**20
PATTERN_CHARS_MAX = 200
PATTERN_REPEATS_MAX = 2
"""Open repeats of one pattern, so that matching a name takes bounded time."""

REFUSED: dict[str, str] = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter (modules_to_save)",
    "lora_bias": "a bias of the adapter (lora_bias)",
    "layer_replication": "layers that are not in the model (layer_replication)",
    "trainable_token_indices": "rows of the embedding (trainable_token_indices)",
    "target_parameters": "parameters that are no linears (target_parameters)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron's parallel layers",
}
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise that change the base model too."""
NO_EFFECT = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version",
    "inference_mode", "lora_dropout", "init_lora_weights", "fan_in_fan_out", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "r", "lora_alpha",
    "use_rslora", "rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
"""What is read below, what matters in training alone, and what the tensors say by their names.

fan_in_fan_out is of the base's layout; A and B are the same either way.
"""


@dataclass(frozen=True)
class LoraConfig:
    """Rank and scale of every module; `targets` are the names that the config lists."""

    rank: int
    alpha: float
    is_rslora: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        return int(_of_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank)."""
        rank = self.rank_of(module)
        alpha = _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rslora else rank)

    def identity(self) -> bytes:
        """What of it changes the adapter's effect, in canonical JSON."""
        fields = (
            self.rank, self.alpha, self.is_rslora, dict(self.rank_pattern),
            dict(self.alpha_pattern),
        )  # fmt: skip
        return json.dumps(fields, sort_keys=True).encode()


def read_config(folder: Path) -> LoraConfig:
    """Read and check a folder's adapter_config.json. Raises AdapterError."""
    path = folder / "adapter_config.json"
    fields = _fields(path)
    if fields.get("peft_type", "LORA") != "LORA":
        raise AdapterError(f"{path}: peft_type is {fields['peft_type']!r}; only LORA is supported.")
    _refuse(path, fields)
    targets = fields.get("target_modules") or ()
    if isinstance(targets, str):
        targets = ()  # a pattern or "all-linear": the tensors say what it found
    if not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"{path}: target_modules is {targets!r}, must be names or a pattern.")
    return LoraConfig(
        rank=int(_number(path, "r", fields.get("r", 8))),
        alpha=_number(path, "lora_alpha", fields.get("lora_alpha", 8)),
        is_rslora=fields.get("use_rslora") is True,
        rank_pattern=_patterns(path, "rank_pattern", fields),
        alpha_pattern=_patterns(path, "alpha_pattern", fields),
        targets=tuple(targets),
    )


def _fields(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise AdapterError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes.")
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read: {error.strerror}.",
            hint="An adapter is a folder with adapter_config.json and adapter_model.safetensors.",
        ) from None
    except (ValueError, RecursionError):
        raise AdapterError(f"{path}: is not JSON.") from None
    if not isinstance(fields, dict):
        raise AdapterError(f"{path}: is no JSON object.")
    return fields


def _refuse(path: Path, fields: dict[str, Any]) -> None:
    for name, what in REFUSED.items():
        if fields.get(name):
            raise AdapterError(f"{path}: {name}={fields[name]!r}: {what} is not supported.")
    if fields.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: bias={fields['bias']!r}: trained biases are not supported, only none."
        )
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights={start!r} changes the base model, which is shared here.",
            hint="Convert the adapter with PEFT: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...).",
        )
    unknown = [name for name in fields if name not in NO_EFFECT and name not in REFUSED]
    unknown = [name for name in unknown if fields[name] not in (None, False, [], {}, "")]
    if unknown:
        raise AdapterError(
            f"{path}: {unknown[0]}={fields[unknown[0]]!r} is not known, so what it changes is not "
            "done."
        )


def _number(path: Path, name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise AdapterError(f"{path}: {name} is {value!r}, must be a positive number.")
    if name in ("r", "rank_pattern") and value != int(value):
        raise AdapterError(f"{path}: {name} is {value!r}, must be a whole number.")
    return float(value)


def _patterns(path: Path, name: str, fields: dict[str, Any]) -> dict[str, float]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: {name} is {value!r}, must be an object.")
    for pattern in value:
        _check_pattern(path, name, pattern)
    return {pattern: _number(path, name, number) for pattern, number in value.items()}


def _check_pattern(path: Path, name: str, pattern: str) -> None:
    """A regular expression that takes bounded time, or AdapterError."""
    bare = pattern.replace("\\.", "")
    repeats = sum(bare.count(sign) for sign in "*+{")
    is_nested = re.search(r"\)\s*[*+{]|\\[1-9]|\(\?P=", bare) is not None
    if len(pattern) > PATTERN_CHARS_MAX or repeats > PATTERN_REPEATS_MAX or is_nested:
        raise AdapterError(
            f"{path}: {name} has the pattern {pattern[:PATTERN_CHARS_MAX]!r}: at most "
            f"{PATTERN_CHARS_MAX} characters and {PATTERN_REPEATS_MAX} repeats, none of a group."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{path}: {name} has the pattern {pattern!r}: {error}.") from None


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The number of the first pattern that is the module's name or the end of it after a dot."""
    parts = module.split(".")
    for pattern, number in patterns.items():
        first = 1 if pattern.startswith("^") else len(parts)
        ends = (".".join(parts[i:]) for i in range(first))
        if any(re.fullmatch(pattern, end) for end in ends):
            return number
    return default
