"""The whole table: sections of fields, and which field holds which section."""

from __future__ import annotations

from ranvier.targets.neuron.config.compute_fields import COMPILER, DEBUG, KERNELS, WEIGHTS
from ranvier.targets.neuron.config.expert_fields import EXPERTS, HYBRID_SHARDING
from ranvier.targets.neuron.config.field import Field
from ranvier.targets.neuron.config.plugin_fields import (
    PLUGIN,
    PLUGIN_SAMPLING,
    TOP_LEVEL,
    VISION,
)
from ranvier.targets.neuron.config.precision_fields import KV_QUANT, QUANTISATION
from ranvier.targets.neuron.config.scale_fields import LORA, LORA_SERVING, PARALLEL, SPECULATION
from ranvier.targets.neuron.config.serving_fields import (
    BUCKETING,
    CACHE,
    CHUNKED_PREFILL,
    DTYPE,
    SAMPLING,
    SAMPLING_CONFIG,
    SHAPE,
)

__all__ = ["CHILDREN", "GROUPS", "SECTIONS", "find_field"]

GROUPS: dict[str, dict[str, tuple[Field, ...]]] = {
    "NeuronConfig": {
        "Shape": SHAPE,
        "Data types": DTYPE,
        "Sampling": SAMPLING,
        "Bucketing": BUCKETING,
        "Scheduling and KV cache": CACHE,
        "Quantisation": QUANTISATION,
        "Speculation": SPECULATION,
        "Parallelism": PARALLEL,
        "Kernels": KERNELS,
        "Weights and running": WEIGHTS,
        "Compiler": COMPILER,
        "LoRA": LORA,
        "Mixtures of experts (MoENeuronConfig)": EXPERTS,
        "Vision and debugging": DEBUG,
    },
    "OnDeviceSamplingConfig": {"": SAMPLING_CONFIG},
    "LoraServingConfig": {"": LORA_SERVING},
    "ChunkedPrefillConfig": {"": CHUNKED_PREFILL},
    "KVQuantizationConfig": {"": KV_QUANT},
    "HybridShardingConfig": {"": HYBRID_SHARDING},
    "neuron_config": {"": PLUGIN},
    "neuron_config.on_device_sampling_config": {"": PLUGIN_SAMPLING},
    "vision_neuron_config": {"": VISION},
    "additional_config": {"": TOP_LEVEL},
}
"""Section, then the title of a group, then its fields."""

SECTIONS: dict[str, dict[str, Field]] = {
    section: {field.name: field for fields in groups.values() for field in fields}
    for section, groups in GROUPS.items()
}

CHILDREN: dict[tuple[str, str], str] = {
    ("NeuronConfig", "on_device_sampling_config"): "OnDeviceSamplingConfig",
    ("NeuronConfig", "lora_config"): "LoraServingConfig",
    ("NeuronConfig", "chunked_prefill_config"): "ChunkedPrefillConfig",
    ("NeuronConfig", "kv_quant_config"): "KVQuantizationConfig",
    ("NeuronConfig", "hybrid_sharding_config"): "HybridShardingConfig",
    ("neuron_config", "on_device_sampling_config"): "neuron_config.on_device_sampling_config",
}
"""(section, field) whose value is a dictionary of another section."""


def find_field(section: str, name: str) -> Field | None:
    """The row of a field, or None."""
    return SECTIONS[section].get(name)
