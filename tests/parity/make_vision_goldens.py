"""Write tiny random models that see pictures, and what transformers makes of them in f32.

Run in an environment of its own that has torch and transformers:
    python tests/parity/make_vision_goldens.py [family ...]

Pixels are not stored: `pixels(seed, shape)` gives the same numbers here and in the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

GOLDENS = Path(__file__).parent / "vision_goldens"
IMAGE = 5
NEW_TOKENS = 6
TEXT = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
    head_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
VIT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip


def pixels(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def prompt(seed: int, parts: list[int]) -> np.ndarray:
    """Text of n tokens for n > 0, n placeholders for n < 0."""
    rng = np.random.default_rng(100 + seed)
    return np.concatenate(
        [rng.integers(10, 128, n) if n > 0 else np.full(-n, IMAGE) for n in parts]
    )


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VIT), text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
    )  # fmt: skip
    cases = {
        "one": dict(parts=[4, -16, 9], images=[dict(shape=(1, 3, 16, 16))]),
        "two": dict(parts=[3, -16, 5, -16, 7], images=[dict(shape=(1, 3, 16, 16))] * 2),
    }
    return hf.LlavaForConditionalGeneration(config), cases, _tiles


def _tiles(model, images):
    return dict(pixel_values=torch.cat([torch.tensor(i["pixels"]) for i in images]))


def llava_next():
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VIT), text_config=hf.MistralConfig(**TEXT),
        image_token_index=IMAGE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    tall = dict(shape=(3, 3, 16, 16), size=(40, 20))
    cases = {
        "tall": dict(parts=[4, -(16 + 8 * 5), 6], images=[tall]),
        "square": dict(parts=[3, -(16 + 8 * 9), 6],
                       images=[dict(shape=(5, 3, 16, 16), size=(30, 30))]),
        "flat": dict(parts=[2, -(16 + 6 * 9), 4, -(16 + 8 * 5), 3],
                     images=[dict(shape=(5, 3, 16, 16), size=(24, 32)), tall]),
    }  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), cases, _anyres


def _anyres(model, images):
    most = max(len(i["pixels"]) for i in images)
    tiles = [np.pad(i["pixels"], ((0, most - len(i["pixels"])), *[(0, 0)] * 3)) for i in images]
    return dict(pixel_values=torch.tensor(np.stack(tiles)),
                image_sizes=torch.tensor([i["size"] for i in images]))  # fmt: skip


QWEN = dict(depth=3, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
ROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3])
TOKENS = dict(
    image_token_id=IMAGE, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8
)


def _patches(rows, columns):
    return dict(shape=(rows * columns, 96), grid=(1, rows, columns))


QWEN_CASES = {
    "one": dict(parts=[5, -6, 7], images=[_patches(4, 6)]),
    "three": dict(parts=[2, -10, 3, -1, 4, -9, 5],
                  images=[_patches(10, 4), _patches(2, 2), _patches(6, 6)]),
}  # fmt: skip


def _grids(model, images):
    return dict(
        pixel_values=torch.cat([torch.tensor(i["pixels"]) for i in images]),
        image_grid_thw=torch.tensor([i["grid"] for i in images]), mm_token_type_ids=None,
    )  # fmt: skip


def qwen2_vl():
    config = hf.Qwen2VLConfig(
        text_config=dict(**TEXT, rope_parameters=ROPE),
        vision_config=dict(**QWEN, embed_dim=32, hidden_size=32, mlp_ratio=2), **TOKENS,
    )  # fmt: skip
    return hf.Qwen2VLForConditionalGeneration(config), QWEN_CASES, _grids


def qwen2_5_vl():
    config = hf.Qwen2_5_VLConfig(
        text_config=dict(**TEXT, rope_parameters=ROPE),
        vision_config=dict(**QWEN, hidden_size=32, out_hidden_size=32, intermediate_size=48,
                           window_size=16, fullatt_block_indexes=[1]), **TOKENS,
    )  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(config), QWEN_CASES, _grids


def qwen3_vl():
    config = hf.Qwen3VLConfig(
        text_config=dict(**TEXT, rope_parameters=ROPE),
        vision_config=dict(**QWEN, hidden_size=32, out_hidden_size=32, intermediate_size=48,
                           num_position_embeddings=25, deepstack_visual_indexes=[0, 1]), **TOKENS,
    )  # fmt: skip
    return hf.Qwen3VLForConditionalGeneration(config), QWEN_CASES, _grids


def idefics3():
    config = hf.Idefics3Config(
        vision_config=dict(**VIT), text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE,
        scale_factor=2,
    )  # fmt: skip
    cases = {
        "whole": dict(parts=[4, -4, 6], images=[dict(shape=(1, 3, 16, 16))]),
        "tiles": dict(parts=[2, -4, 2, -4, 1, -4, 2, -4, 3, -4, 3, -4, 2],
                      images=[dict(shape=(5, 3, 16, 16)), dict(shape=(1, 3, 16, 16))]),
    }  # fmt: skip
    return hf.Idefics3ForConditionalGeneration(config), cases, _tiles_in_turn


def smolvlm():
    config = hf.SmolVLMConfig(
        vision_config=dict(**VIT), text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE,
        scale_factor=4,
    )  # fmt: skip
    cases = {"tiles": dict(parts=[2, -1, 2, -1, 1, -1, 3], images=[dict(shape=(3, 3, 16, 16))])}
    return hf.SmolVLMForConditionalGeneration(config), cases, _tiles_in_turn


def _tiles_in_turn(model, images):
    return dict(pixel_values=torch.cat([torch.tensor(i["pixels"]) for i in images])[None])


def gemma3_vision():
    text = dict(
        **TEXT, sliding_window=16, query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text), vision_config=hf.SiglipVisionConfig(**VIT),
        image_token_id=IMAGE, mm_tokens_per_image=4,
    )  # fmt: skip
    cases = {
        "one": dict(parts=[5, -4, 20], images=[dict(shape=(1, 3, 16, 16))]),
        "two": dict(parts=[1, -4, 3, -4, 7], images=[dict(shape=(1, 3, 16, 16))] * 2),
    }
    return hf.Gemma3ForConditionalGeneration(config), cases, _typed_tiles


def _typed_tiles(model, images):
    return dict(**_tiles(model, images), token_type_ids=None)


def pixtral():
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            image_size=64, patch_size=4, hidden_act="silu",
        ),
        text_config=hf.MistralConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    cases = {
        # A token of the row's end lies between the rows of a picture.
        "one": dict(parts=[4, -5, 1, -5, 1, -5, 4], images=[dict(shape=(1, 3, 12, 20))]),
        "two": dict(parts=[2, -2, 3, -6, 1, -6, 5],
                    images=[dict(shape=(1, 3, 4, 8)), dict(shape=(1, 3, 8, 24))]),
    }  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), cases, _canvases


def _canvases(model, images):
    sizes = [i["shape"][2:] for i in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pads = [((0, 0), (0, 0), (0, height - h), (0, width - w)) for h, w in sizes]
    whole = [np.pad(i["pixels"], pad) for i, pad in zip(images, pads, strict=True)]
    return dict(pixel_values=torch.tensor(np.concatenate(whole)), image_sizes=torch.tensor(sizes))


def mllama():
    text = {**TEXT, "num_hidden_layers": 5, "cross_attention_layers": [1, 4]}
    text.pop("head_dim")
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_global_layers=2,
        attention_heads=2, image_size=16, patch_size=4, vision_output_dim=96,
        intermediate_layers_indices=[0, 1],
    )  # fmt: skip
    config = hf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    cases = {
        "first": dict(parts=[-1, 9], images=[_tiled(1, 2)]),
        "later": dict(parts=[6, -1, 9], images=[_tiled(2, 2)]),
        "apart": dict(parts=[2, -1, 5, -1, 9], images=[_tiled(3, 1), _tiled(1, 1)]),
        "three": dict(parts=[2, -1, 3, -2, 9], images=[_tiled(1, 2), _tiled(1, 1), _tiled(2, 1)]),
    }
    return hf.MllamaForConditionalGeneration(config), cases, _aspects


def mllama_tiles():
    """As published: nothing in the tables of positions for tiles that are padding."""
    model, _, prepare = mllama()
    cases = {
        "one": dict(parts=[3, -1, 9], images=[_tiled(1, 1)]),
        "two": dict(parts=[-1, 9], images=[_tiled(2, 1)]),
        "three": dict(parts=[2, -1, 9], images=[_tiled(1, 3)]),
        "four": dict(parts=[2, -1, 3, -1, 9], images=[_tiled(2, 2), _tiled(1, 1)]),
    }
    return model, cases, prepare


def _forget_padding(model):
    vision = model.model.vision_model
    tables = (
        vision.gated_positional_embedding.tile_embedding,
        vision.pre_tile_positional_embedding.embedding,
        vision.post_tile_positional_embedding.embedding,
    )
    ratios = model.config.vision_config.supported_aspect_ratios
    with torch.no_grad():
        for table in tables:
            tiles = table.weight.view(len(ratios) + 1, 4, -1)
            tiles[0] = 0
            for number, (rows, columns) in enumerate(ratios, 1):
                tiles[number, rows * columns :] = 0


def _tiled(rows, columns):
    return dict(shape=(rows * columns, 3, 16, 16), grid=(1, rows, columns))


def _hide_unseen(model):
    """As Meta's own model has it: a token before the first picture gets nothing of one.

    transformers lets it attend to all pictures alike, those that are yet to come among them.
    """
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.register_forward_pre_hook(_remember, with_kwargs=True)
            layer.cross_attn.register_forward_hook(_hide)


def _remember(layer, args, kwargs):
    layer.cross_attn.seen = kwargs.get("full_text_row_masked_out_mask")


def _hide(module, args, output):
    return output if module.seen is None else (module.seen[:, 0] * output[0], *output[1:])


def _aspects(model, images, ids):
    ratios = model.config.vision_config.supported_aspect_ratios
    count = len(images)
    tiles = np.zeros((1, count, 4, 3, 16, 16), np.float32)
    mask, of = np.zeros((1, count, 4), np.int64), np.zeros((1, count), np.int64)
    for i, image in enumerate(images):
        own = len(image["pixels"])
        tiles[0, i, :own], mask[0, i, :own] = image["pixels"], 1
        of[0, i] = ratios.index(list(image["grid"][1:])) + 1
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense as dense,
    )
    from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask as runs

    seen = dense([runs(ids[0].tolist(), IMAGE)], [mask[0].sum(1).tolist()], 4, ids.shape[1])
    return dict(
        pixel_values=torch.tensor(tiles), aspect_ratio_mask=torch.tensor(mask),
        aspect_ratio_ids=torch.tensor(of), cross_attention_mask=torch.tensor(seen),
    )  # fmt: skip


def _keys_and_values(model, inputs):
    """Of every layer that attends to tiles, for the tiles that are there."""
    inner = model.model
    given = {k: v for k, v in inputs.items() if k != "cross_attention_mask"}
    with torch.no_grad():
        states = inner.multi_modal_projector(inner.vision_model(**given).last_hidden_state)
        states = states[inputs["aspect_ratio_mask"].bool()].reshape(-1, states.shape[-1])
        parts = []
        for layer in inner.language_model.layers:
            if hasattr(layer, "cross_attn"):
                own = layer.cross_attn
                parts += [own.k_norm(own.k_proj(states)), own.v_proj(states)]
    return torch.cat(parts, dim=1).numpy()


FAMILIES = {
    "mllama": mllama, "mllama_tiles": mllama_tiles,
    "llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl, "idefics3": idefics3, "smolvlm": smolvlm, "gemma3": gemma3_vision,
    "pixtral": pixtral,
}  # fmt: skip


def randomise(model, name):
    """Weights of some size; they are bfloat16 numbers, as most checkpoints' are."""
    torch.manual_seed(len(name))
    with torch.no_grad():
        for key, value in model.named_parameters():
            is_norm = "norm" in key or "ln_" in key
            value.copy_(torch.randn_like(value) * (0.3 if is_norm or "bias" in key else 0.15))
            if is_norm and key.endswith("weight") and not name.startswith("gemma"):
                value.add_(1.0)
            if "gate" in key and value.numel() == 1:
                value.copy_(torch.full_like(value, 0.7))


def run(model, case, seed, prepare):
    images = [
        {**image, "pixels": pixels(10 * seed + i, image["shape"])}
        for i, image in enumerate(case["images"])
    ]
    ids = torch.tensor(prompt(seed, case["parts"]))[None]
    own = (model, images, ids) if prepare is _aspects else (model, images)
    inputs = prepare(*own) if images else {}
    types = (ids == IMAGE).int()
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            inputs[name] = types
    with torch.no_grad():
        out = model(ids, **inputs)
        made = model.generate(
            ids, **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones_like(ids),
        )  # fmt: skip
    found = {"ids": ids[0].numpy(), "logits": out.logits[0, -16:].numpy(),
             "tokens": made[0, ids.shape[1]:].numpy()}  # fmt: skip
    if images:
        found["features"] = features(model, inputs)
    return found


def features(model, inputs):
    """Features of all pictures, one below the other."""
    if "aspect_ratio_ids" in inputs:
        return _keys_and_values(model, inputs)
    given = {k: v for k, v in inputs.items() if k not in ("mm_token_type_ids", "token_type_ids")}
    with torch.no_grad():
        out = model.model.get_image_features(**given)
    pooled = out.pooler_output
    if not isinstance(pooled, torch.Tensor):
        pooled = torch.cat([p.reshape(-1, p.shape[-1]) for p in pooled])
    deep = [torch.cat(list(d)) for d in getattr(out, "deepstack_features", None) or ()]
    return torch.cat([pooled.reshape(-1, pooled.shape[-1]), *deep], dim=1).numpy()


def main() -> None:
    for name in sys.argv[1:] or FAMILIES:
        model, cases, prepare = FAMILIES[name]()
        model = model.float().eval()
        randomise(model, name)
        if name == "mllama_tiles":
            _forget_padding(model)
        folder = GOLDENS / name
        model.to(torch.bfloat16).save_pretrained(folder)
        # Read back: a cast of the model in place would round its rope frequencies too.
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        if prepare is _aspects:
            _hide_unseen(model)
        cases = {"none": dict(parts=[12], images=[]), **cases}
        found = {}
        for seed, (label, case) in enumerate(cases.items()):
            for key, value in run(model, case, seed, prepare).items():
                found[f"{label}/{key}"] = value
            print(name, label, found[f"{label}/tokens"], float(np.abs(value).max()))
        np.savez_compressed(folder / "golden.npz", **found)
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
