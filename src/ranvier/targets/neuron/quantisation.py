"""NxD Inference's names of quantisation, as what they ask of Ranvier: pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = ["NeuronQuantisation", "neuron_quantisation"]

SCHEMES: dict[tuple[str, str], str] = {
    ("int8", "per_tensor_symmetric"): "int8",
    ("int8", "per_channel_symmetric"): "int8",
    ("f8e4m3", "per_tensor_symmetric"): "fp8-tensor",
    ("f8e4m3", "per_channel_symmetric"): "fp8-channel",
}
"""int8 has one scale an output in either case: no less exact than one for the tensor."""
TYPES = (
    "per_tensor_symmetric", "per_channel_symmetric", "blockwise_symmetric", "per_key_symmetric",
    "expert_wise_per_channel_symmetric",
)  # fmt: skip
DTYPES = {"torch.int8": "int8", "s8": "int8", "float8_e4m3fn": "f8e4m3", "f8e4m3fn": "f8e4m3"}


@dataclass(frozen=True)
class NeuronQuantisation:
    """What NxDI's fields mean: a scheme of `ranvier quantize`, and where its folder is.

    `scheme` None with a `folder`: as the folder's own quantization_config says.
    """

    scheme: str | None = None
    folder: str | None = None
    ignore: tuple[str, ...] = ()


def neuron_quantisation(values: Mapping[str, Any]) -> NeuronQuantisation:
    """The meaning of a NeuronConfig's quantisation fields; missing ones have NxDI's defaults.

    Raises ConfigError that names the field, for values that are unknown or not supported.
    """
    if not values.get("quantized"):
        return NeuronQuantisation()
    folder = values.get("quantized_checkpoints_path")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(
            "quantized needs quantized_checkpoints_path.",
            hint="Name the folder that `ranvier quantize --output` wrote.",
        )
    return NeuronQuantisation(_scheme(values), folder, _names(values, "modules_to_not_convert"))


def _scheme(values: Mapping[str, Any]) -> str | None:
    kind = str(values.get("quantization_type") or "per_tensor_symmetric")
    given = str(values.get("quantization_dtype") or "int8")
    dtype = DTYPES.get(given, given)
    if kind not in TYPES:
        near = difflib.get_close_matches(kind, TYPES, n=1)
        raise ConfigError(
            f"quantization_type: unknown value {kind!r}."
            f"{f' Did you mean {near[0]}?' if near else ''}"
        )
    size = values.get("quantization_block_size")
    if kind == "blockwise_symmetric":
        if size not in ([128, 128], (128, 128), None) or dtype != "f8e4m3":
            raise ConfigError(
                f"quantization_block_size is {size!r} with {given}: of blocks, f8e4m3 in [128, "
                "128] is supported, as the checkpoint stores it."
            )
        return None
    if size is not None:
        raise ConfigError(f"quantization_block_size is {size!r}, but {kind} has no blocks.")
    found = SCHEMES.get((dtype, kind))
    if found is None:
        known = "; ".join(f"{d} {k}" for d, k in SCHEMES)
        raise ConfigError(
            f"quantization_dtype {given!r} with quantization_type {kind!r} is not supported.",
            hint=f"Supported: {known}; f8e4m3 blockwise_symmetric from a stored checkpoint.",
        )
    return found


def _names(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values.get(name) or ()
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{name} is {found!r}, must be a list of modules' names.")
    return tuple(found)
