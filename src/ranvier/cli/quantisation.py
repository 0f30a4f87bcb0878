"""What `quantization` means for a checkpoint: its own width, a scheme while packing, or dense."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ranvier.cli.options.settings import Options, nearest, say
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.read import merge
from ranvier.targets.neuron.quantisation import NeuronQuantisation, neuron_quantisation
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint
from ranvier.weights.quantise.loading import QuantisingCheckpoint
from ranvier.weights.quantise.scheme import SCHEMES, parse_scheme
from ranvier.weights.quantise.selection import module_of
from ranvier.weights.stored.table import names_without_module

__all__ = ["DENSE", "neuron_weights", "quantisation_of", "stored_bytes", "with_scheme"]

DENSE = "none"
STORED = ("gguf", "compressed-tensors", "gptq", "awq", "fp8")
"""Names of vLLM's for what a checkpoint already is; fp8 is a scheme too."""


KINDS = {"int8": "int8 W8A16", "fp8-tensor": "fp8", "fp8-channel": "fp8"}
"""What the name of a stored form says where it is of a scheme that NxDI's names ask for."""
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
OVERRIDE = "override_neuron_config"


def neuron_weights(options: Options, checkpoint: Checkpoint, memo: Path) -> Checkpoint | None:
    """The quantised checkpoint that NxDI's `quantized` fields put in this one's place, or None.

    Raises ConfigError where the folder is not there, or is of another scheme or model.
    """
    inner = (options.additional_config or {}).get(OVERRIDE) or {}
    wish = neuron_quantisation(merge(inner, options.override_neuron_config or {}))
    if wish.folder is None:
        return None
    folder = Path(wish.folder).expanduser()
    if options.quantization not in (None, wish.scheme):
        raise ConfigError(
            f"quantization={options.quantization} contradicts {OVERRIDE}, which asks for "
            f"{wish.scheme or 'the blocks that ' + str(folder) + ' stores'}.",
            hint="Give one of them.",
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"quantized_checkpoints_path: {folder} holds no quantised model.",
            hint=f"Make it with: {_making(options.model, wish)}",
        )
    found = open_checkpoint(folder, memo)
    _check_weights(wish, folder, found, checkpoint.config)
    if (options.target or "").startswith("neuron"):
        say(f"weights of {folder} are widened to the model's dtype for {options.target}")
    return found


def _making(model: str, wish: NeuronQuantisation) -> str:
    words = ["ranvier", "quantize", model, "--scheme", wish.scheme or "fp8"]
    words += [word for name in wish.ignore for word in ("--ignore", name)]
    return shlex.join([*words, "--output", str(wish.folder)])


def _check_weights(
    wish: NeuronQuantisation, folder: Path, found: Checkpoint, model: dict[str, Any]
) -> None:
    for name in SIZES:
        if found.config.get(name) != model.get(name):
            raise ConfigError(
                f"quantized_checkpoints_path: {folder} has {name} {found.config.get(name)!r}, the "
                f"model {model.get(name)!r}.",
                hint="It must hold the same model.",
            )
    stored = found.quantisation or "not quantised"
    if KINDS.get(wish.scheme or "", "fp8") not in stored:
        raise ConfigError(
            f"quantized_checkpoints_path: {folder} is {stored}; quantization_dtype and "
            f"quantization_type ask for {wish.scheme or 'fp8 in blocks'}.",
            hint="Name the folder's own kind, or quantise the model again.",
        )
    for pattern in wish.ignore:
        names = [n for n in found.tensor_names() if pattern in module_of(n)]
        quantised = next((n for n in names if found.read_quantised(n) is not None), None)
        if not names or quantised:
            raise ConfigError(
                f"modules_to_not_convert: {pattern!r} "
                + (f"is quantised in {folder}: {quantised}." if names else "matches no module."),
                hint=f"Quantise the model again with --ignore {pattern}.",
            )


def with_scheme(options: Options, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, quantised while it is read where the options name a scheme.

    Raises ConfigError for unknown names, and for a stored form that the checkpoint does not have.
    """
    named, stored = options.quantization, checkpoint.quantisation or ""
    if named in (None, DENSE):
        return checkpoint
    assert named is not None
    if named in STORED and stored.startswith(named):
        return checkpoint
    if named in SCHEMES:
        return QuantisingCheckpoint(checkpoint, parse_scheme(named))
    if named in STORED:
        raise ConfigError(
            f"quantization={named}, but {checkpoint.path} is {stored or 'not quantised'}.",
            hint=f"Leave the option out, or name a scheme: {', '.join(SCHEMES)}.",
        )
    known = [*SCHEMES, *STORED, DENSE]
    raise ConfigError(f"Unknown quantization {named!r}.{nearest(named, known)}")


def quantisation_of(options: Options, checkpoint: Checkpoint, dtype: str) -> str:
    """How the weights of a build are kept: DENSE, or the name of their scheme."""
    found = checkpoint.quantisation
    idle = names_without_module(checkpoint.config, checkpoint.tensor_names()) if found else []
    if idle:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        say(f"quantization_config leaves out modules that are not there: {idle[:3]}{more}")
    if found is None or options.quantization == DENSE:
        return DENSE
    if options.quantization is None and dtype == "float32":
        say(f"the checkpoint's {found} weights become float32, since dtype is")
        return DENSE
    return found


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's files, an upper bound of its weights at their own width."""
    path: Path = checkpoint.path
    files = path.glob("*.safetensors") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)
