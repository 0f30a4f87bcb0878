"""Options that come by the names of Neuron's stacks: override_neuron_config and its kin."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ranvier.cli.options.adapters import join_modules
from ranvier.core.buckets import BucketRequest
from ranvier.core.errors import CheckpointError
from ranvier.targets.neuron.config.nxdi import REFUSAL, NxdiFolder, is_nxdi, read_nxdi
from ranvier.targets.neuron.config.read import merge
from ranvier.targets.neuron.config.translate import translate

__all__ = [
    "apply_neuron", "bucket_request", "equivalent_command", "explain_nxdi_root",
    "refuse_nxdi_model",
]  # fmt: skip

OWN = ("override_neuron_config", "additional_config", "from_nxdi")

Lists = Mapping[str, tuple[int, ...]]
Notice = Callable[[str], None]


def apply_neuron(fields: Mapping[str, Any], listed: Lists, notice: Notice) -> dict[str, Any]:
    """The options with what the configurations ask for put in. Raises ConfigError."""
    found, base = dict(fields), {}
    if found.get("from_nxdi"):
        folder = read_nxdi(Path(found["from_nxdi"]).expanduser())
        notice(f"{folder.path} was compiled by NxD Inference; the same here: "
               f"{equivalent_command(folder, str(found['model']))}")  # fmt: skip
        for line in folder.left_out:
            notice(f"from_nxdi: left out: {line}")
        base = folder.options
        found["override_neuron_config"] = merge(
            folder.override, found.get("override_neuron_config") or {}
        )
    plain = {k: v for k, v in found.items() if k not in OWN and v is not None and v != -1}
    made = translate(
        found.get("additional_config"), found.get("override_neuron_config"), plain, listed
    )
    for line in made.notices:
        notice(line)
    joined = {**base, **found, **made.options}
    if made.adapters:
        joined["lora_modules"] = join_modules(joined.get("lora_modules", ()), made.adapters)
    return joined


def bucket_request(
    additional: Mapping[str, Any] | None, override: Mapping[str, Any] | None, listed: Lists
) -> BucketRequest:
    """The buckets that the configurations and the environment ask for. Raises ConfigError."""
    return translate(additional, override, {}, listed).buckets


def refuse_nxdi_model(path: Path) -> None:
    """Raise CheckpointError for a folder compiled by NxD Inference that holds no checkpoint."""
    if not is_nxdi(path) or (path / "config.json").is_file():
        return
    folder = read_nxdi(path)
    model = folder.model or "MODEL"
    raise CheckpointError(
        f"{path} was compiled by NxD Inference and holds no checkpoint: {REFUSAL}.",
        hint=f"Name the model that it was made of, and --from-nxdi {path}; its settings are: "
        f"{equivalent_command(folder, model)}",
    )


def explain_nxdi_root(root: Path, model: str) -> list[str]:
    """What to tell of an artifact folder that holds a build of NxD Inference."""
    if not is_nxdi(root):
        return []
    return [
        f"{root} holds a build of NxD Inference, which is left as it is: {REFUSAL}",
        f"its settings are: {equivalent_command(read_nxdi(root), model)}",
    ]


def equivalent_command(folder: NxdiFolder, model: str) -> str:
    """The command line that asks Ranvier for what an NxD Inference folder was compiled for."""
    words = ["ranvier", "serve", model]
    for name, value in folder.options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = json.dumps(value) if isinstance(value, Mapping) else str(value)
            words += [f"--{flag}", text]
    if folder.override:
        words += ["--override-neuron-config", json.dumps(folder.override)]
    return shlex.join(words)
