"""What `quantization` means for a checkpoint: its own width, a scheme while packing, or dense."""

from __future__ import annotations

from pathlib import Path

from ranvier.cli.options.settings import Options, nearest, say
from ranvier.core.errors import ConfigError
from ranvier.weights.checkpoint import Checkpoint
from ranvier.weights.quantise.loading import QuantisingCheckpoint
from ranvier.weights.quantise.scheme import SCHEMES, parse_scheme

__all__ = ["DENSE", "quantisation_of", "stored_bytes", "with_scheme"]

DENSE = "none"
STORED = ("gguf", "compressed-tensors", "gptq", "awq", "fp8")
"""Names of vLLM's for what a checkpoint already is; fp8 is a scheme too."""


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
