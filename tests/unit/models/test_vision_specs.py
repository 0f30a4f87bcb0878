"""Configs of models that see pictures: published forms resolve, wrong ones are named."""

from __future__ import annotations

import copy
import json

import pytest
from tests.parity.vision_cases import GOLDENS

from ranvier.core.errors import CheckpointError
from ranvier.models.table import resolve

CLIP = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14, "model_type": "clip_vision_model",
}  # fmt: skip
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "vision_config": CLIP,
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
}  # fmt: skip
NEXT = {
    "architectures": ["LlavaNextForConditionalGeneration"], "vision_config": CLIP,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "text_config": {
        "model_type": "mistral", "vocab_size": 32064, "sliding_window": None,
        "num_key_value_heads": 8, "intermediate_size": 14336, "rope_theta": 1e6,
    },
}  # fmt: skip
QWEN = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16,
                      "hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2},
}  # fmt: skip
GEMMA = {
    "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256,
    "eos_token_id": [1, 106],
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                    "model_type": "gemma3_text", "sliding_window": 1024,
                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                      "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
                      "model_type": "siglip_vision_model"},
}  # fmt: skip


def test_llava_1_5_takes_defaults_for_what_its_file_leaves_out():
    spec = resolve(LLAVA)
    assert (spec.hidden, spec.layers, spec.heads) == (4096, 32, 32)
    assert spec.vision.encoder.tower.layers == 23
    assert spec.vision.encoder.outputs(1) == 576


def test_llava_next_counts_the_tiles_of_its_grids():
    spec = resolve(NEXT)
    assert spec.vision.units == (1, 3, 4, 5)
    assert spec.windows == (0,) * 32


def test_qwen2_vl_reads_a_file_without_text_config():
    spec = resolve(QWEN)
    assert (spec.layers, spec.kv_heads, spec.has_qkv_bias) == (28, 4, True)
    assert [spec.rope_axes.count(axis) for axis in range(3)] == [16, 24, 24]
    assert spec.vision.encoder.tower.intermediate == 5120
    assert spec.vision.encoder.outputs(1024) == 256


def test_gemma_3_4b_has_256_features_a_picture():
    spec = resolve(GEMMA)
    assert (spec.heads, spec.kv_heads, spec.vocab_size) == (8, 4, 262208)
    assert spec.end_token_ids == (1, 106)
    assert spec.vision.encoder.outputs(1) == 256
    assert spec.vision.is_whole


def test_gemma_3_without_an_encoder_is_its_text_side():
    assert resolve({**GEMMA, "vision_config": None}).vision is None


def golden(family):
    return json.loads((GOLDENS / family / "config.json").read_text())


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, name = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return config


@pytest.mark.parametrize(
    ("config", "path", "value", "message"),
    [
        (LLAVA, "vision_config", None, "vision_config is missing"),
        (LLAVA, "vision_config.model_type", "dinov2", "vision tower 'dinov2' is not supported"),
        (LLAVA, "vision_config.hidden_act", "relu", "hidden_act 'relu' is not supported"),
        (LLAVA, "vision_config.patch_size", 400, "image_size=336 is below patch_size=400"),
        (LLAVA, "vision_feature_select_strategy", "full", "strategy 'full' is not supported"),
        (LLAVA, "vision_feature_layer", 0, "vision_feature_layer=0 is not supported"),
        (LLAVA, "text_config.model_type", "opt", "text side 'opt' is not supported"),
        (NEXT, "image_grid_pinpoints", [[100, 100]], "size below image_size=336"),
        (QWEN, "rope_scaling", {"type": "default"}, "no mrope_section"),
        (QWEN, "rope_scaling", {"mrope_section": [16, 24]}, "three counts that sum to 64"),
        (QWEN, "rope_scaling", {"mrope_section": [16, 24, 25]}, "three counts that sum to 64"),
        (QWEN, "vision_config.depth", 0, "depth must be an integer"),
        (GEMMA, "mm_tokens_per_image", 200, "does not divide 64 x 64 patches"),
        (GEMMA, "text_config.sliding_window", 128, "below the 256 tokens of a picture"),
        (golden("idefics3"), "scale_factor", 3, "does not divide 4 patches"),
        (golden("idefics3"), "vision_config.image_size", 100, "25 patches a side"),
        (golden("mllama"), "text_config.cross_attention_layers", [1, 1], "no distinct layers of 5"),
        (golden("mllama"), "text_config.cross_attention_layers", [9], "no distinct layers of 5"),
        (golden("mllama"), "vision_config.vision_output_dim", 64, "is not hidden_size=32 times 3"),
        (golden("pixtral"), "vision_feature_layer", -2, "must be -1 for a Pixtral tower"),
    ],
)
def test_a_wrong_config_is_named(config, path, value, message):
    with pytest.raises(CheckpointError, match=message):
        resolve(changed(config, path, value))
