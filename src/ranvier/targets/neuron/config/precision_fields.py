"""NxDI's NeuronConfig: quantisation of weights and KV cache."""

from __future__ import annotations

import math

from ranvier.targets.neuron.config.field import Field, honoured, refused

__all__ = ["KV_QUANT", "QUANTISATION"]

_SCHEME = "one scale a tensor or an output, or the blocks that a checkpoint stores"
_OTHER = "weights are int8 or e4m3 with f32 scales; activations keep 16 bits"
_KV = "kv_cache_quant casts to e4m3 directly; other ways are not supported"

QUANTISATION: tuple[Field, ...] = (
    honoured(
        "quantized", "bool", False, "quantization",
        "weights come from quantized_checkpoints_path, which `ranvier quantize` makes",
    ),
    honoured(
        "quantized_checkpoints_path", "str", None, "quantization",
        "folder of the quantised weights, in place of the model's",
    ),
    honoured(
        "quantization_type", "str", "per_tensor_symmetric", "quantization",
        "per_tensor_, per_channel_ or blockwise_symmetric; the folder must be of that kind",
    ),
    honoured(
        "quantization_dtype", "str", "int8", "quantization",
        "int8 or f8e4m3; the folder must be of that kind",
    ),
    honoured("quantization_block_size", "any", None, "quantization", "[128, 128] of f8e4m3"),
    refused("quantization_block_axis", "any", None, _SCHEME),
    refused("quantization_scale_dtype", "str", "f32", _OTHER),
    refused("is_mxfp4_compute", "bool", False, _OTHER),
    refused("is_full_model_shuffled", "bool", False, _SCHEME),
    honoured(
        "modules_to_not_convert", "strings", None, "quantization",
        "they must be dense in the folder: `ranvier quantize --ignore` leaves them so",
    ),
    refused(
        "draft_model_modules_to_not_convert", "strings", None,
        "a draft is a model of its own: speculative_config names its folder and quantization",
    ),
    refused("activation_quantization_type", "str", None, _OTHER),
    refused("quantize_clamp_bound", "float", math.inf, _OTHER),
)  # fmt: skip

KV_QUANT: tuple[Field, ...] = (
    refused("k_quant_method", "str", "per_tensor", _KV),
    refused("v_quant_method", "str", "per_tensor", _KV),
    refused("quant_dtype", "dtype", "float8_e4m3fn", _KV),
    refused("direct_cast", "bool", True, _KV),
)
