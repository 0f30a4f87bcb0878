"""Names that neuronx-cc is said to take: operators in StableHLO's spelling, and custom calls.

Sources: AWS's operator list (old) and later notes; no modern list is public. `neuronx-cc
list-operators --framework XLA` on an installed compiler is the only authority.
"""

from __future__ import annotations

__all__ = ["ACCEPTED", "CUSTOM_CALLS", "DYNAMIC", "PROBABLE"]

ACCEPTED = frozenset([
    "abs", "add", "all_gather", "all_reduce", "all_to_all", "and", "atan2", "batch_norm_grad",
    "batch_norm_inference", "batch_norm_training", "bitcast_convert", "broadcast",
    "broadcast_in_dim", "ceil", "clamp", "compare", "concatenate", "constant", "convert",
    "convolution", "cosine", "custom_call", "divide", "dot", "dot_general", "dynamic_update_slice",
    "exponential", "floor", "gather", "get_tuple_element", "iota", "log", "maximum", "minimum",
    "multiply", "negate", "not", "or", "pad", "power", "reduce", "reduce_scatter", "reshape",
    "reverse", "rng_bit_generator", "rng", "rng_uniform", "rsqrt", "scatter", "select",
    "select_and_scatter", "shift_right_logical", "sign", "sine", "slice", "sqrt", "subtract",
    "tanh", "transpose", "tuple", "xor",
])  # fmt: skip
"""On AWS's list, or emitted by AWS's own stack."""

PROBABLE = frozenset([
    "call", "cbrt", "collective_broadcast", "collective_permute", "composite", "dynamic_slice",
    "erf", "exponential_minus_one", "is_finite", "log_plus_one", "logistic", "optimization_barrier",
    "partition_id", "popcount", "recv", "reduce_window", "remainder", "replica_id",
    "round_nearest_even", "send", "shift_left", "shift_right_arithmetic", "sort", "square", "tan",
    "while", "module", "func", "return", "case", "if",
])  # fmt: skip
"""Seen to work in public notes, or structure (func, return); case and if have a rule of their own.
chlo.square is multiply in HLO."""

DYNAMIC = frozenset([
    "dynamic_broadcast_in_dim", "dynamic_conv", "dynamic_gather", "dynamic_iota", "dynamic_pad",
    "dynamic_reshape", "get_dimension_size", "real_dynamic_slice", "set_dimension_size",
])  # fmt: skip

CUSTOM_CALLS = frozenset([
    "AwsNeuronErf", "AwsNeuronGelu", "AwsNeuronGeluApprxTanh", "AwsNeuronGeluBackward",
    "AwsNeuronSilu", "AwsNeuronSiluBackward", "AwsNeuronRmsNorm", "AwsNeuronSoftmax",
    "AwsNeuronSoftmaxBackward", "AwsNeuronCollectiveMatmul", "AwsNeuronIntMatmult",
    "AwsNeuronArgMax", "AwsNeuronArgMin", "AwsNeuronTopK", "AwsNeuronDropoutMaskV1",
    "AwsNeuronCustomNativeKernel", "AwsNeuronCustomOp", "AwsNeuronDevicePrint",
    "AwsNeuronLNCShardingConstraint", "AwsNeuronTransferWithStaticRing",
    "AwsNeuronModuleMarkerStart-Forward", "AwsNeuronModuleMarkerEnd-Forward",
    "AwsNeuronModuleMarkerStart-Backward", "AwsNeuronModuleMarkerEnd-Backward", "ResizeNearest",
    "ResizeBilinear", "ResizeNearestGrad", "NeuronBoundaryMarker-Start", "NeuronBoundaryMarker-End",
])  # fmt: skip
