"""Vision: pictures where the placeholders stand, and nothing else taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.core.media import VisionInfo
from ranvier.media.process.prepared import Configs
from ranvier.media.vision import Vision

CLIP = {"size": {"shortest_edge": 28}, "crop_size": 28}
MODEL = {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14}}
QWEN = {"min_pixels": 3136, "max_pixels": 6272}
WORDS = ["<image>", "<|image_pad|>", "<start_of_image>", "<image_soft_token>", "<end_of_image>",
         "[IMG]", "[IMG_BREAK]", "[IMG_END]"]  # fmt: skip


def vision(family="llava", image=CLIP, model=MODEL, processor=None):
    configs = Configs({"model_type": family, **model}, image, processor or {})
    return Vision(configs, lambda token: 1000 + WORDS.index(token) if token in WORDS else None)


def encode(text):
    """One id a character, and those of the image tokens."""
    ids = []
    while text:
        word = next((word for word in WORDS if text.startswith(word)), text[0])
        ids.append(1000 + WORDS.index(word) if word in WORDS else ord(word))
        text = text[len(word) :]
    return ids


def picture(height=20, width=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_a_text_and_its_ids_are_woven_alike():
    side = vision()
    pictures = [side.processor().prepare(picture(seed=n)) for n in range(2)]
    text = "a<image>b<image>"
    woven = side.weave(text, pictures, encode, "prompt")
    assert woven.token_ids == [97, *[1000] * 4, 98, *[1000] * 4]
    assert [item.spans for item in woven.media.images] == [((1, 4),), ((6, 4),)]
    assert woven == side.weave(encode(text), pictures, encode, "prompt")
    first, second = woven.media.images
    assert first.digest != second.digest
    assert np.frombuffer(first.pixels, np.float32).size == np.prod(first.shape)


def test_equal_pictures_have_equal_digests_and_other_settings_others():
    side = vision("qwen2_vl", QWEN)

    def digest(**kwargs):
        prepared = side.processor(kwargs).prepare(picture(200, 200))
        return side.weave("<|image_pad|>", [prepared], encode, "p").media.images[0].digest

    assert digest() == digest()
    assert digest(max_pixels=12544) != digest()


def test_text_around_a_picture_is_encoded_with_it():
    side = vision(
        "gemma3", {"size": {"height": 28, "width": 28}}, processor={"image_seq_length": 3}
    )
    prepared = side.processor().prepare(picture())
    woven = side.weave("x<start_of_image>y", [prepared], encode, "p")
    assert woven.token_ids == [120, 10, 10, 1002, 1003, 1003, 1003, 1004, 10, 10, 121]
    assert woven.media.images[0].spans == ((4, 3),)


def test_pixtrals_rows_are_spans_between_breaks():
    model = {"vision_config": {"model_type": "pixtral", "patch_size": 14}}
    side = vision("llava", {"size": {"longest_edge": 42}, "patch_size": 14}, model)
    prepared = side.processor().prepare(picture(20, 42))
    woven = side.weave("[IMG]", [prepared], encode, "p")
    image, row, end = (1000 + WORDS.index(w) for w in ("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    assert woven.token_ids == [image, image, image, row, image, image, image, end]
    assert woven.media.images[0].spans == ((0, 3), (4, 3))


@pytest.mark.parametrize(
    ("prompt", "count", "told"),
    [
        ("no placeholder", 1, "0 image placeholders; its pictures need 1"),
        ("<image><image>", 1, "2 image placeholders; its pictures need 1"),
        ("<image>", 2, "1 image placeholders; its pictures need 2"),
        ("typed <image>", 0, "image token '<image>' but no picture"),
        ([97, 1000], 0, "but no picture"),
        ([97, 1000, 1000], 1, "2 image placeholders"),
    ],
)
def test_placeholders_without_pictures_are_refused(prompt, count, told):
    side = vision()
    pictures = [side.processor().prepare(picture())] * count
    with pytest.raises(RequestError, match=told):
        side.weave(prompt, pictures, encode, "prompt")


def test_an_image_token_typed_by_a_user_is_refused():
    side = vision()
    side.check_text("an <img> tag", "messages")
    with pytest.raises(RequestError, match="stands for a picture"):
        side.check_text("an <image> tag", "messages")


def test_processor_kwargs_are_honoured_or_refused_by_name():
    side = vision("qwen2_vl", QWEN)
    small = side.processor({"max_pixels": 3136}).prepare(picture(200, 200))
    assert small.grid == (1, 4, 4)
    with pytest.raises(RequestError, match="'fps' is not supported.*max_pixels, min_pixels, size"):
        side.processor({"fps": 2})
    for wrong in (0, -1, "x", True, 2.5, 2**31):
        with pytest.raises(RequestError, match="mm_processor_kwargs"):
            side.processor({"max_pixels": wrong})
    with pytest.raises(RequestError, match="known: none"):
        vision().processor({"size": 3})


def seeing_up_to(units, **changes):
    return VisionInfo(
        family="qwen2_vl", unit="patches", units=(16, units), rows=64, images_max=4, **changes
    )


def qwen(units, kwargs=None):
    configs = Configs({"model_type": "qwen2_vl"}, QWEN, {})
    return Vision(configs, lambda token: 5, kwargs=kwargs, info=seeing_up_to(units))


def test_kwargs_keep_pictures_within_what_is_compiled():
    side = qwen(64)
    assert side.processor({"max_pixels": 64 * 196}).units_max == 64
    with pytest.raises(RequestError, match="could become 65 patches; the encoder takes at most 64"):
        side.processor({"max_pixels": 65 * 196})
    assert qwen(16).processor({"max_pixels": 6272}).units_max == 32, "as the model's own"


def test_the_operators_kwargs_come_before_the_models_and_behind_the_requests():
    side = qwen(64, {"max_pixels": 3136})
    assert side.processor().prepare(picture(200, 200)).grid == (1, 4, 4)
    assert side.processor({"max_pixels": 12544}).prepare(picture(200, 200)).grid == (1, 8, 8)
    assert side.processor({"min_pixels": 784}).prepare(picture(28, 28)).grid == (1, 2, 2)
    with pytest.raises(RequestError, match="65 patches"):
        qwen(64, {"max_pixels": 65 * 196})


def test_a_size_outranks_the_models_own_numbers():
    size = {"shortest_edge": 784, "longest_edge": 3136}
    assert qwen(64).processor({"size": size}).prepare(picture(200, 200)).grid == (1, 4, 4)
    both = {"size": size, "max_pixels": 12544}
    assert qwen(64).processor(both).prepare(picture(200, 200)).grid == (1, 8, 8)
    for wrong in ({"longest_edge": 3136}, 3136, "x", [1], None, {"height": 3}):
        with pytest.raises(RequestError, match="mm_processor_kwargs"):
            qwen(64).processor({"size": wrong})


@pytest.mark.parametrize(
    ("family", "image", "model", "units", "sides"),
    [
        ("mllama", {"size": {"height": 28, "width": 28}}, {}, 4, ((56, 56), (28, 112))),
        ("idefics3", {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}},
         {"vision_config": {"patch_size": 14}}, 10, ((84, 84), (84, 30))),
        ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8,
                    "size": {"height": 28, "width": 28}}, {}, 5, ((28, 112), (500, 20))),
        ("llava_next", {**CLIP, "image_grid_pinpoints": [[28, 56], [56, 56]]}, MODEL, 5,
         ((56, 56), (28, 56))),
    ],
)  # fmt: skip
def test_no_picture_becomes_more_than_units_max(family, image, model, units, sides):
    configs = Configs({"model_type": family, **model}, image, {})
    processor = Vision(configs, lambda token: 5).processor()
    assert processor.units_max == units
    counts = [len(processor.prepare(picture(*side)).values) for side in sides]
    assert max(counts) == units


def test_a_picture_that_would_grow_without_bounds_is_refused():
    side = vision(image={"size": {"shortest_edge": 224}, "crop_size": 224})
    with pytest.raises(RequestError, match="16384x2 pixels becomes 1835008x224"):
        side.processor().prepare(Image.new("RGB", (16384, 2)))
    with pytest.raises(RequestError, match="at most 200 times"):
        vision("qwen2_vl", QWEN).processor().prepare(Image.new("RGB", (1000, 2)))


@pytest.mark.parametrize(
    ("family", "image", "model", "told"),
    [
        ("gpt2", CLIP, MODEL, "no pictures for model_type 'gpt2'"),
        ("llava", {**CLIP, "do_resize": False}, MODEL, "do_resize=false"),
        ("llava", {**CLIP, "image_mean": [1, 2]}, MODEL, "image_mean"),
        ("llava", CLIP, {}, "patch_size"),
        (
            "llava",
            {"size": {"shortest_edge": 28}, "do_center_crop": False},
            MODEL,
            "do_center_crop",
        ),
        ("llava_next", {**CLIP, "image_grid_pinpoints": [[28, 30]]}, MODEL, "multiples of 28"),
        ("qwen2_vl", {"min_pixels": 9, "max_pixels": 8}, {}, "exceed"),
        ("mllama", CLIP, {}, "no height|token"),
    ],
)
def test_configs_that_say_nonsense_are_refused(family, image, model, told):
    with pytest.raises(CheckpointError, match=told):
        vision(family, image, model)
