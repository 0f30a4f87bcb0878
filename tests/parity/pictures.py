"""Pictures made by code, and the configs that the reference processors are run with."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZES = ((40, 56), (97, 33), (224, 224), (31, 200), (300, 410), (2, 3), (65, 64), (500, 90))
"""(height, width)."""

CLIP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
CASES = {
    "llava": ("llava", CLIP, {"patch_size": 14}),
    "llava-odd": (
        "llava",
        {"size": {"shortest_edge": 50}, "crop_size": {"height": 57, "width": 71}},
        {"patch_size": 7},
    ),
    "llava-square": ("llava", {**CLIP, "do_pad": True}, {"patch_size": 14}),
    "llava_next": (
        "llava_next",
        {**CLIP, "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]},
        {"patch_size": 14},
    ),
    "qwen2_vl": ("qwen2_vl", {"min_pixels": 3136, "max_pixels": 40000}, {}),
    "qwen3_vl": (
        "qwen3_vl",
        {
            "size": {"shortest_edge": 4096, "longest_edge": 65536}, "patch_size": 16,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        },
        {},
    ),
    "gemma3": ("gemma3", {"size": {"height": 56, "width": 56}}, {"image_seq_length": 4}),
    "gemma3-scan": (
        "gemma3",
        {
            "size": {"height": 56, "width": 56}, "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 30, "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        {"image_seq_length": 4},
    ),
    "idefics3": (
        "idefics3",
        {"size": {"longest_edge": 120}, "max_image_size": {"longest_edge": 40}},
        {"image_seq_len": 5},
    ),
    "smolvlm-whole": (
        "smolvlm",
        {
            "size": {"longest_edge": 120}, "max_image_size": {"longest_edge": 40},
            "do_image_splitting": False,
        },
        {"image_seq_len": 5},
    ),
    "pixtral": (
        "pixtral",
        {"size": {"longest_edge": 160}, "patch_size": {"height": 16, "width": 16}},
        {"patch_size": 16},
    ),
    "mllama": ("mllama", {"size": {"height": 56, "width": 56}, "max_image_tiles": 4}, {}),
}  # fmt: skip
"""Name: (family, preprocessor_config.json, processor_config.json)."""


def drawing(height: int, width: int) -> Image.Image:
    """Waves, a disc and noise: edges, slopes and grain in every channel."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [127 + 120 * np.sin((i + 1) * x / 9 + y / (5 + 3 * i)) for i in range(3)]
    pixels = np.stack(waves, axis=-1)
    inside = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 3) ** 2
    pixels[inside] = (230, 40, 90)
    grain = np.random.default_rng(height * 1000 + width).integers(-7, 8, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
