"""NxDI's NeuronConfig: quantisation of weights and KV cache."""

from __future__ import annotations

import math

from ranvier.targets.neuron.config.field import Field, refused

__all__ = ["KV_QUANT", "QUANTISATION"]

_NOT_YET = "weights quantised for Neuron are not supported yet"
_KV = "kv_cache_quant casts to e4m3 directly; other ways are not supported"

QUANTISATION: tuple[Field, ...] = (
    refused("quantized", "bool", False, _NOT_YET),
    refused("quantized_checkpoints_path", "str", None, _NOT_YET),
    refused("quantization_type", "str", "per_tensor_symmetric", _NOT_YET),
    refused("quantization_dtype", "str", "int8", _NOT_YET),
    refused("quantization_block_size", "any", None, _NOT_YET),
    refused("quantization_block_axis", "any", None, _NOT_YET),
    refused("quantization_scale_dtype", "str", "f32", _NOT_YET),
    refused("is_mxfp4_compute", "bool", False, _NOT_YET),
    refused("is_full_model_shuffled", "bool", False, _NOT_YET),
    refused("modules_to_not_convert", "strings", None, _NOT_YET),
    refused("draft_model_modules_to_not_convert", "strings", None, _NOT_YET),
    refused("activation_quantization_type", "str", None, _NOT_YET),
    refused("quantize_clamp_bound", "float", math.inf, _NOT_YET),
)

KV_QUANT: tuple[Field, ...] = (
    refused("k_quant_method", "str", "per_tensor", _KV),
    refused("v_quant_method", "str", "per_tensor", _KV),
    refused("quant_dtype", "dtype", "float8_e4m3fn", _KV),
    refused("direct_cast", "bool", True, _KV),
)
