"""Write what transformers' Pillow-based image processors make of drawn pictures.

Run in an environment of its own that has torch, transformers and Pillow:
    python tests/parity/make_picture_goldens.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from pictures import CASES, SIZES, drawing
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

# This module's other half works on torchvision; its text does not.
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
    sys.modules.setdefault(name, ModuleType(name))
sys.modules["torchvision.transforms.v2"].functional = None
from transformers.models.pixtral.processing_pixtral import PixtralProcessor  # noqa: E402

GOLDENS = Path(__file__).parent / "goldens/pictures/processors.json"
SAMPLES = 24
FAMILIES = {
    "llava": (LlavaImageProcessorPil, LlavaProcessor),
    "llava_next": (LlavaNextImageProcessorPil, LlavaNextProcessor),
    "qwen2_vl": (Qwen2VLImageProcessorPil, Qwen2VLProcessor),
    "qwen3_vl": (Qwen2VLImageProcessorPil, Qwen2VLProcessor),
    "gemma3": (Gemma3ImageProcessorPil, Gemma3Processor),
    "idefics3": (Idefics3ImageProcessorPil, Idefics3Processor),
    "smolvlm": (SmolVLMImageProcessorPil, SmolVLMProcessor),
    "pixtral": (PixtralImageProcessorPil, PixtralProcessor),
    "mllama": (MllamaImageProcessorPil, MllamaProcessor),
}


def run(family: str, fields: dict, given: dict, size: tuple[int, int]) -> dict:
    """One picture's values and text."""
    make, processor = FAMILIES[family]
    image_processor = make(**fields)
    extra = {"return_row_col_info": True} if family in ("idefics3", "smolvlm") else {}
    out = image_processor(images=drawing(*size), return_tensors="np", **extra)
    me = SimpleNamespace(
        image_processor=image_processor, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", spatial_merge_size=1, image_token="<image>",
        fake_image_token="<fake_token_around_image>", global_image_tag="<global-img>",
        global_image_token="<global-img>", image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]", **given,
    )  # fmt: skip
    token = {"qwen2_vl": "<|image_pad|>", "qwen3_vl": "<|image_pad|>", "pixtral": "[IMG]",
             "mllama": "<|image|>"}.get(family)  # fmt: skip
    if token:
        me.image_token = token
    if family == "gemma3":
        soft = "<image_soft_token>" * me.image_seq_length
        me.full_image_sequence = f"\n\n<start_of_image>{soft}<end_of_image>\n\n"
    if family == "llava_next":
        me._get_unpadded_features = processor._get_unpadded_features.__get__(me)
        me._get_number_of_features = processor._get_number_of_features.__get__(me)
    text = processor.replace_image_token(me, out, 0)
    values = np.asarray(out["pixel_values"], np.float32)
    if family == "mllama":
        values = values[0, 0][: out["num_tiles"][0][0]]
    elif family in ("llava_next", "idefics3", "smolvlm"):
        values = values[0]
    flat = np.ascontiguousarray(values).ravel()
    found = {
        "shape": list(values.shape),
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest(),
        "samples": [round(float(v), 5) for v in flat[:: max(1, flat.size // SAMPLES)][:SAMPLES]],
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "text_length": len(text),
    }
    if "image_grid_thw" in out:
        found["grid"] = [int(n) for n in out["image_grid_thw"][0]]
    if "aspect_ratio_ids" in out:
        found["aspect_ratio_id"] = int(out["aspect_ratio_ids"][0][0])
    return found


def rope() -> list[dict]:
    """M-RoPE positions of prompts with pictures between words."""
    cases = []
    for words, grids in (((3, 2), [(4, 6)]), ((1, 4, 0), [(2, 2), (8, 4)]), ((0, 1), [(6, 2)])):
        kinds = [0] * words[0]
        for count, (rows, columns) in zip(words[1:], grids, strict=True):
            kinds += [1] * (rows * columns // 4) + [0] * count
        me = SimpleNamespace(
            config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
        )
        me.get_vision_position_ids = Qwen2VLModel.get_vision_position_ids.__get__(me)
        positions, delta = Qwen2VLModel.get_rope_index(
            me,
            torch.zeros((1, len(kinds)), dtype=torch.long),
            torch.tensor([kinds]),
            torch.tensor([(1, *grid) for grid in grids]),
        )
        cases.append(
            {"words": words, "grids": grids, "positions": positions[:, 0].tolist(),
             "delta": int(delta)}
        )  # fmt: skip
    return cases


def main() -> None:
    found: dict = {"rope": rope(), "cases": {}}
    for name, (family, fields, given) in CASES.items():
        sizes = [s for s in SIZES if not (family.startswith("qwen") and max(s) / min(s) > 200)]
        found["cases"][name] = {f"{h}x{w}": run(family, fields, given, (h, w)) for h, w in sizes}
    GOLDENS.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
